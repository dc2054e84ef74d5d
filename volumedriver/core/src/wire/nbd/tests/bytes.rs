//! Bytes from hexadecimal with spaces, for tests that read like the protocol document.

/// `"25609513 0001"` and quoted text: `"'NBDMAGIC' 00"`.
pub fn hex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (n, part) in text.split('\'').enumerate() {
        if n % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: Vec<char> = part.chars().filter(|c| !c.is_whitespace()).collect();
        assert!(digits.len().is_multiple_of(2), "odd number of digits in {part:?}");
        for pair in digits.chunks(2) {
            let pair: String = pair.iter().collect();
            bytes.push(u8::from_str_radix(&pair, 16).expect("hexadecimal"));
        }
    }
    bytes
}

#[test]
fn hexadecimal_and_text() {
    assert_eq!(hex("00ff 'a b' 10"), [0x00, 0xff, b'a', b' ', b'b', 0x10]);
}
