//! Connections that leave a pod.
