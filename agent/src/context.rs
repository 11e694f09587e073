//! What a connection of a pod may use.
