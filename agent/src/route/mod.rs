//! Matches requests to routes.
