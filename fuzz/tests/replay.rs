//! Runs every stored input through its target, without a fuzzer.

use std::fs;
use std::path::Path;

use volumedriver_fuzz::TARGETS;

#[test]
fn every_stored_input_is_judged() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for file in fs::read_dir(corpus.join(name)).expect("every target has a corpus") {
            let path = file.expect("a corpus can be listed").path();
            let bytes = fs::read(&path).expect("a corpus file can be read");
            eprintln!("{}", path.display());
            target(&bytes);
            // Neighbours of a sound value, as a fuzzer would try them first.
            for len in 0..bytes.len() {
                target(&bytes[..len]);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn every_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for folder in fs::read_dir(corpus).expect("there is a corpus") {
        let name = folder.expect("a corpus can be listed").file_name();
        let name = name.to_str().expect("targets have plain names");
        assert!(volumedriver_fuzz::find(name).is_some(), "{name}");
    }
}
