//! Sessions over real sockets: with clients of other makers, and byte by byte.

mod clients;
mod limits;
mod peer;
mod ram;
mod tls;
mod wire;
