//! The gRPC contracts as generated code. No logic here.

// Generated: a field named `len` makes a method of that name, which is no length of a collection.
// Generated too: messages lie in the enum of their stream.
#![allow(clippy::len_without_is_empty, clippy::large_enum_variant)]

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

/// The OSDs of an object backend (`alba_osds.proto`).
pub mod alba_osds {
    tonic::include_proto!("alba.osds.v1");
}

/// One OSD behind a socket (`osd.proto`).
pub mod osd {
    tonic::include_proto!("alba.osd.v1");
}
