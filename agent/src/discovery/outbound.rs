//! What an original destination is: profile and policy, watched side by side and combined.
//!
//! The policy decides; where it has no answer the profile's endpoint does, and where neither has,
//! the connection goes on to where it was going. "No answer" is something that the controller has
//! said. Silence, an error or nonsense is not: then the target stays unknown and connections wait
//! and fail, because the destination may be a meshed one.

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    sync::{Arc, Weak},
    time::Duration,
};

use linkerd2_proxy_api::{
    destination::{DestinationProfile, GetDestination, destination_client::DestinationClient},
    outbound::{
        OutboundPolicy, TrafficSpec, outbound_policies_client::OutboundPoliciesClient,
        traffic_spec::Target,
    },
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, Streaming};

use super::{
    Watched,
    client::Client,
    convert::{self, Goal, Policy, Profile},
    model::{Destination, Endpoint, EndpointSet, Meta, OutboundTarget, Protocol},
    report::Reporter,
    stream::{Event, Follow},
    tokens,
};
use crate::metrics::Stream;

/// Linkerd's limit for a service of which nothing is ready.
const FAILFAST: Duration = Duration::from_secs(3);
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What to watch.
pub(super) struct Question {
    pub(super) namespace: Arc<str>,
    pub(super) node: Arc<str>,
    pub(super) destination: SocketAddr,
    /// Whether the address is one that profiles are asked for.
    pub(super) in_cluster: bool,
}

/// Keeps a target up to date until nobody holds it. `sets` finds or starts endpoint sets.
pub(super) async fn watch(
    client: Client,
    question: Question,
    target: Weak<Watched<OutboundTarget>>,
    sets: impl Fn(&Arc<str>) -> Arc<EndpointSet> + Send + Sync,
    stop: CancellationToken,
) {
    let subject = format!("{} for {}", question.destination, question.namespace);
    let combined = Mutex::new(Answers {
        profile: match question.in_cluster {
            true => Answer::Unknown,
            false => Answer::None,
        },
        policy: Answer::Unknown,
    });
    let publish = |answers: &Answers| {
        let Some(target) = target.upgrade() else {
            return ControlFlow::Break(());
        };
        if let Some(next) = combine(question.destination, answers, &sets)
            && !target.load().is_some_and(|known| known.is_same(&next))
        {
            target.publish(next);
        }
        ControlFlow::Continue(())
    };
    let profile = async {
        if !question.in_cluster {
            return;
        }
        let mut report = Reporter::new(&client.metrics, Stream::Profile, &subject);
        let follow = Follow {
            stream: Stream::Profile,
            expects_message: true,
            ask_again: ASK_AGAIN,
        };
        let open = || open_profile(&client, &question);
        let apply = |event| {
            let mut answers = combined.lock();
            answers
                .profile
                .apply(event, convert::profile, &mut report, |_| true);
            publish(&answers)
        };
        follow.run(&client, &stop, open, apply).await;
    };
    let policy = async {
        let mut report = Reporter::new(&client.metrics, Stream::OutboundPolicy, &subject);
        let follow = Follow {
            stream: Stream::OutboundPolicy,
            expects_message: true,
            ask_again: ASK_AGAIN,
        };
        let open = || open_policy(&client, &question);
        let apply = |event: Event<OutboundPolicy>| {
            let mut answers = combined.lock();
            let says_none = |code| matches!(code, Code::NotFound | Code::Unimplemented);
            answers
                .policy
                .apply(event, convert::policy, &mut report, says_none);
            publish(&answers)
        };
        follow.run(&client, &stop, open, apply).await;
    };
    tokio::join!(profile, policy);
}

async fn open_profile(
    client: &Client,
    question: &Question,
) -> Result<Response<Streaming<DestinationProfile>>, Status> {
    let request = client.request(GetDestination {
        scheme: String::new(),
        path: question.destination.to_string(),
        context_token: tokens::context(&question.namespace, &question.node),
    });
    let mut destinations = DestinationClient::new(client.channel.clone());
    destinations.get_profile(request.await?).await
}

async fn open_policy(
    client: &Client,
    question: &Question,
) -> Result<Response<Streaming<OutboundPolicy>>, Status> {
    let request = client.request(TrafficSpec {
        source_workload: tokens::source(&question.namespace),
        target: Some(Target::Addr(question.destination.into())),
    });
    let mut policies = OutboundPoliciesClient::new(client.channel.clone());
    policies.watch(request.await?).await
}

/// What the controller has said to one question.
enum Answer<T> {
    /// Nothing yet.
    Unknown,
    /// That there is nothing.
    None,
    /// This.
    Some(T),
}

impl<T> Answer<T> {
    /// Takes what a stream says. What could not be understood changes nothing, and neither does
    /// "nothing" once there was something: a controller that has just started may not know yet.
    fn apply<M>(
        &mut self,
        event: Event<M>,
        convert: fn(M) -> Result<T, convert::Invalid>,
        report: &mut Reporter<'_>,
        says_none: fn(Code) -> bool,
    ) {
        match event {
            Event::Message { message, .. } => match convert(message) {
                Ok(value) => {
                    *self = Self::Some(value);
                    report.applied();
                }
                Err(error) => report.refused(error),
            },
            Event::Refused(code) if says_none(code) && matches!(self, Self::Unknown) => {
                *self = Self::None;
            }
            Event::Refused(_) => {}
        }
    }
}

struct Answers {
    profile: Answer<Profile>,
    policy: Answer<Policy>,
}

/// Makes a target of what is known, if that is enough.
fn combine(
    destination: SocketAddr,
    answers: &Answers,
    sets: &impl Fn(&Arc<str>) -> Arc<EndpointSet>,
) -> Option<OutboundTarget> {
    let no_profile = Profile::default();
    let profile = match &answers.profile {
        Answer::Some(profile) => Some(profile),
        Answer::None => Some(&no_profile),
        Answer::Unknown => None,
    };
    match &answers.policy {
        Answer::Unknown => None,
        Answer::Some(policy) => Some(of_policy(destination, policy, profile, sets)),
        Answer::None => Some(of_profile(destination, profile?, sets)),
    }
}

fn of_policy(
    destination: SocketAddr,
    policy: &Policy,
    profile: Option<&Profile>,
    sets: &impl Fn(&Arc<str>) -> Arc<EndpointSet>,
) -> OutboundTarget {
    let named = profile.and_then(|profile| authority(profile, destination));
    let (authority, destination) = match &policy.goal {
        Goal::Balance(path) => {
            let named = named.unwrap_or_else(|| Arc::clone(path));
            (Some(named), Destination::Balance(sets(path)))
        }
        Goal::Forward(endpoint) => (named, Destination::Forward(Arc::clone(endpoint))),
        Goal::Forbidden(reason) => (named, Destination::Forbidden(reason)),
    };
    OutboundTarget {
        protocol: policy.protocol,
        detect_timeout: policy.detect_timeout,
        authority,
        parent: policy.parent.clone(),
        route: policy.route.clone(),
        backend: policy.backend.clone(),
        destination,
        failfast: FAILFAST,
    }
}

fn of_profile(
    destination: SocketAddr,
    profile: &Profile,
    sets: &impl Fn(&Arc<str>) -> Arc<EndpointSet>,
) -> OutboundTarget {
    let authority = authority(profile, destination);
    let goal = match (&profile.endpoint, &authority) {
        (Some(endpoint), _) => Destination::Forward(Arc::clone(endpoint)),
        (None, Some(authority)) => Destination::Balance(sets(authority)),
        (None, None) => Destination::Forward(Arc::new(Endpoint::plain(destination))),
    };
    let default = || Meta::default_named("default");
    OutboundTarget {
        protocol: match profile.is_opaque {
            true => Protocol::Opaque,
            false => Protocol::Detect,
        },
        detect_timeout: DETECT_TIMEOUT,
        authority: authority.filter(|_| profile.endpoint.is_none()),
        parent: default(),
        route: default(),
        backend: default(),
        destination: goal,
        failfast: FAILFAST,
    }
}

fn authority(profile: &Profile, destination: SocketAddr) -> Option<Arc<str>> {
    let name = profile.name.as_ref()?;
    Some(format!("{name}:{}", destination.port()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDR: &str = "10.1.0.2:80";

    /// What is decided, in short.
    fn decide(profile: Answer<Profile>, policy: Answer<Policy>) -> Option<String> {
        let sets = |authority: &Arc<str>| Arc::new(EndpointSet::fixed(authority, vec![]));
        let answers = Answers { profile, policy };
        let target = combine(ADDR.parse().unwrap(), &answers, &sets)?;
        let authority = target.authority.unwrap_or_default();
        Some(match target.destination {
            Destination::Balance(set) => format!("{authority} to set {}", set.authority()),
            Destination::Forward(endpoint) => format!("{authority} to {}", endpoint.addr),
            Destination::Forbidden(reason) => format!("{authority} {reason}"),
        })
    }

    #[test]
    fn a_policy_decides_then_a_profile_and_silence_decides_nothing() {
        let endpoint = |addr: &str| Arc::new(Endpoint::plain(addr.parse().unwrap()));
        let policy = |goal| {
            Answer::Some(Policy {
                protocol: Protocol::Detect,
                detect_timeout: DETECT_TIMEOUT,
                parent: Meta::default_named("p"),
                route: Meta::default_named("r"),
                backend: Meta::default_named("b"),
                goal,
            })
        };
        let service = || Profile {
            name: Some("web.shop.svc".into()),
            ..Profile::default()
        };
        let pod = || Profile {
            endpoint: Some(endpoint("10.1.0.3:80")),
            ..Profile::default()
        };
        let balance = || policy(Goal::Balance("other.shop.svc:80".into()));
        let forward = || policy(Goal::Forward(endpoint("10.1.0.4:80")));
        for (profile, policy, expected) in [
            (Answer::Unknown, Answer::Unknown, None),
            (Answer::Some(pod()), Answer::Unknown, None),
            (Answer::Unknown, Answer::None, None),
            (
                Answer::Unknown,
                balance(),
                Some("other.shop.svc:80 to set other.shop.svc:80"),
            ),
            (
                Answer::Some(service()),
                balance(),
                Some("web.shop.svc:80 to set other.shop.svc:80"),
            ),
            (Answer::Some(pod()), forward(), Some(" to 10.1.0.4:80")),
            (Answer::None, policy(Goal::Forbidden("no")), Some(" no")),
            (Answer::Some(pod()), Answer::None, Some(" to 10.1.0.3:80")),
            (
                Answer::Some(service()),
                Answer::None,
                Some("web.shop.svc:80 to set web.shop.svc:80"),
            ),
            (Answer::None, Answer::None, Some(" to 10.1.0.2:80")),
        ] {
            assert_eq!(decide(profile, policy).as_deref(), expected);
        }
    }
}
