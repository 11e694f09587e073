//! Sockets for tests of other modules.

use std::sync::{Arc, Weak};

use tokio::net::TcpSocket;
use weft_api::model::PodUid;

use super::{Family, Lender, Stock};

/// Lends sockets of the test's own network namespace, at once.
struct OwnNetwork(Weak<Stock>);

/// A stock that is never empty.
pub(crate) fn stock() -> Arc<Stock> {
    Arc::new_cyclic(|stock| Stock::new("test".into(), Arc::new(OwnNetwork(Weak::clone(stock)))))
}

impl Lender for OwnNetwork {
    fn ask(&self, _uid: &PodUid, family: Family, count: u32) -> bool {
        let make = || match family {
            Family::V4 => TcpSocket::new_v4().unwrap(),
            Family::V6 => TcpSocket::new_v6().unwrap(),
        };
        if let Some(stock) = self.0.upgrade() {
            stock.put(family, (0..count).map(|_nth| make()).collect(), "");
        }
        true
    }
}
