//! One connection to weft-node, from `Hello` until it breaks.

use std::{os::fd::AsFd as _, os::fd::OwnedFd, path::Path};

use prost::Message as _;
use tokio::sync::{Notify, mpsc};
use weft_api::proto::lend::{self, to_agent, to_node};

use super::{
    super::wire::{MAX_PACKET, Packets, WireError},
    pods::Pods,
};

/// Highest version of the protocol that is spoken here.
const VERSION: u32 = 1;

pub(super) struct Connection {
    packets: Packets,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Connects, says who this is and what it holds, and is welcomed.
    pub(super) async fn open(path: &Path, pods: &mut Pods) -> Result<Self, WireError> {
        let mut this = Self {
            packets: Packets::connect(path)?,
            buffer: vec![0; MAX_PACKET].into_boxed_slice(),
        };
        this.send(to_node::Message::Hello(pods.hello(VERSION)))
            .await?;
        for (holding, listeners) in pods.holding() {
            let message = to_node::Message::Holding(holding);
            let packet = lend::ToNode {
                message: Some(message),
            }
            .encode_to_vec();
            let descriptors: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
            this.packets.send(&packet, &descriptors).await?;
        }
        let (seq, message, _none) = this.receive().await?;
        let to_agent::Message::Welcome(welcome) = message else {
            return Err(WireError::Unexpected("something before its welcome"));
        };
        if welcome.version != VERSION {
            return Err(WireError::Unexpected("a version that is not spoken here"));
        }
        pods.welcome(welcome.generation);
        this.acknowledge(seq, String::new()).await?;
        Ok(this)
    }

    /// Carries out what weft-node says and passes on what it is asked, until the connection
    /// breaks, which it says why.
    pub(super) async fn serve(
        mut self,
        pods: &mut Pods,
        requests: &mut mpsc::Receiver<lend::SocketsWanted>,
        serving: &Notify,
    ) -> WireError {
        loop {
            let done = tokio::select! {
                received = self.receive() => match received {
                    Ok((seq, message, descriptors)) => {
                        let outcome = pods.apply(message, descriptors).await;
                        self.acknowledge(seq, outcome.err().unwrap_or_default()).await
                    }
                    Err(error) => Err(error),
                },
                Some(wanted) = requests.recv() => {
                    self.send(to_node::Message::SocketsWanted(wanted)).await
                }
                () = serving.notified() => match pods.is_draining() {
                    true => Ok(()),
                    false => self.send(to_node::Message::Serving(lend::Serving {})).await,
                },
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn acknowledge(&self, seq: u64, error: String) -> Result<(), WireError> {
        self.send(to_node::Message::Ack(lend::Ack { seq, error }))
            .await
    }

    async fn send(&self, message: to_node::Message) -> Result<(), WireError> {
        let packet = lend::ToNode {
            message: Some(message),
        };
        Ok(self.packets.send(&packet.encode_to_vec(), &[]).await?)
    }

    async fn receive(&mut self) -> Result<(u64, to_agent::Message, Vec<OwnedFd>), WireError> {
        let (length, descriptors) = self.packets.receive(&mut self.buffer).await?;
        let packet = lend::ToAgent::decode(&self.buffer[..length])?;
        let message = packet
            .message
            .ok_or(WireError::Unexpected("a message of a kind not known here"))?;
        Ok((packet.seq, message, descriptors))
    }
}
