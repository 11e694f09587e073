//! Certificates and keys of the node's workloads.
