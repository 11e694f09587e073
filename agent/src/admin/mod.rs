//! What the agent shows: node-wide and per pod.
