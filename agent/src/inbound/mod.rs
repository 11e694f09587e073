//! Connections that come in to a pod.
