//! The gRPC contracts as generated code. No logic here.

// Generated: a field named `len` makes a method of that name, which is no length of a collection.
#![allow(clippy::len_without_is_empty)]

/// The management plane of one node (`management.proto`).
pub mod management {
    tonic::include_proto!("volumedriver.management.v1");
}

/// The object backend (`alba.proto`).
pub mod alba {
    tonic::include_proto!("alba.v1");
}

/// Administration of the object backend (`alba_admin.proto`).
pub mod alba_admin {
    tonic::include_proto!("alba.admin.v1");
}
