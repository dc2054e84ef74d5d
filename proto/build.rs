//! Compiles every `.proto` of this folder; needs no protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(".")?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    // The folder itself too: a new file must be seen.
    println!("cargo::rerun-if-changed=.");
    let descriptors = protox::compile(&files, ["."])?;
    // A list of small messages must not become a list of large structures.
    let title = ".alba.osd.v1.Store.title";
    tonic_prost_build::configure().bytes(".").boxed(title).compile_fds(descriptors)?;
    Ok(())
}
