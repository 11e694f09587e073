//! Settings: what was typed, and what is used.
