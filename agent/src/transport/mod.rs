//! Bytes: detection, headers, copying, dialling.
