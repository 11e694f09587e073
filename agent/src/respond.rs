//! Where an error becomes an answer.
