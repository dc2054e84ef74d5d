//! Sizes as people write them: `4GiB`, `4G`, `4096M`, `512`. Prefixes are powers of 1024; `KB`, `MB`, ... are refused because
//! nobody agrees what they mean.

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::ByteCount;

const PREFIXES: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Reads a size. `Invalid` names the text and what is accepted.
pub fn parse(text: &str) -> Result<ByteCount> {
    let bad = |why: &str| {
        Fault::invalid(format!(
            "{text:?} is not a size: {why} (write bytes, or 64K, 4M, 4MiB, 1G, 2TiB)"
        ))
    };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => return Err(bad("it does not begin with a digit")),
        Err(_) => return Err(bad("the number is too large")),
    };
    let shift = unit_shift(unit.trim_start()).map_err(bad)?;
    match number.checked_shl(shift).filter(|bytes| bytes >> shift == number) {
        Some(bytes) => Ok(ByteCount(bytes)),
        None => Err(bad("the number is too large")),
    }
}

fn unit_shift(unit: &str) -> Result<u32, &'static str> {
    if unit.is_empty() || unit == "B" {
        return Ok(0);
    }
    for (prefix, shift) in PREFIXES {
        let Some(rest) = unit.strip_prefix([prefix, prefix.to_ascii_lowercase()]) else { continue };
        return match rest {
            "" | "iB" | "ib" => Ok(shift),
            "B" | "b" => Err("powers of 1000 are not used here, write the unit with \"iB\""),
            _ => Err("the unit is unknown"),
        };
    }
    Err("the unit is unknown")
}

/// The size with the largest unit that expresses it exactly: `64MiB`, `4097`. [`parse`] reads it back.
#[must_use]
pub fn exact(size: ByteCount) -> String {
    for (prefix, shift) in PREFIXES.iter().rev() {
        if size.0 != 0 && size.0.trailing_zeros() >= *shift {
            return format!("{}{prefix}iB", size.0 >> shift);
        }
    }
    size.0.to_string()
}

/// The size for a table: at most one digit after the point, `1.5 GiB`.
#[must_use]
pub fn human(size: ByteCount) -> String {
    for (prefix, shift) in PREFIXES.iter().rev() {
        if size.0 >> shift == 0 {
            continue;
        }
        let tenths = (u128::from(size.0) * 10) >> shift;
        let (whole, tenth) = (tenths / 10, tenths % 10);
        return match tenth {
            0 => format!("{whole} {prefix}iB"),
            _ => format!("{whole}.{tenth} {prefix}iB"),
        };
    }
    format!("{} B", size.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4GiB", 4 << 30),
            ("4G", 4 << 30),
            ("4096M", 4 << 30),
            (" 2 TiB ", 2 << 40),
            ("1PiB", 1 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text).unwrap(), ByteCount(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for text in [
            "",
            "G",
            "-1",
            "4GB",
            "4 MB",
            "1.5G",
            "4X",
            "4GiBs",
            "0x10",
            "18446744073709551616",
            "16384P",
            "18446744073709551615K",
            "４K",
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")), "{message}");
        }
    }

    #[test]
    fn exact_text_reads_back() {
        for bytes in [0, 1, 4095, 4096, 4097, 64 << 20, 3 << 40, 1 << 50, u64::MAX] {
            assert_eq!(parse(&exact(ByteCount(bytes))).unwrap(), ByteCount(bytes));
        }
        assert_eq!(exact(ByteCount(64 << 20)), "64MiB");
        assert_eq!(exact(ByteCount(4097)), "4097");
    }

    #[test]
    fn human_text_is_short() {
        assert_eq!(human(ByteCount(0)), "0 B");
        assert_eq!(human(ByteCount(1023)), "1023 B");
        assert_eq!(human(ByteCount(4 << 30)), "4 GiB");
        assert_eq!(human(ByteCount((3 << 30) / 2)), "1.5 GiB");
        assert_eq!(human(ByteCount(u64::MAX)), "16383.9 PiB");
    }
}
