//! Wire protocols of the frontends: push bytes in, get messages out, encode replies. No I/O.

pub mod nbd;
