//! Headers as one blob.
//!
//! None is SQL NULL. Otherwise each header in its order: the name's length, the name (UTF-8), the
//! value's length, the value. A length is an unsigned LEB128 number: seven bits a byte, the lowest
//! first, the top bit set on all bytes but the last. Values below 128 bytes thus cost one byte.

/// The blob of some headers, `None` for none.
pub(super) fn encode(headers: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
    if headers.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for (name, value) in headers {
        part(&mut out, name.as_bytes());
        part(&mut out, value);
    }
    Some(out)
}

/// The headers of a blob, `None` where it isn't one of ours.
pub(super) fn decode(mut blob: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut headers = Vec::new();
    while !blob.is_empty() {
        let name = std::str::from_utf8(take(&mut blob)?).ok()?.to_owned();
        headers.push((name, take(&mut blob)?.to_vec()));
    }
    Some(headers)
}

fn part(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

fn take<'a>(blob: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut length: u64 = 0;
    // Five groups reach 35 bits, far beyond the largest blob that SQLite holds.
    for group in 0..5 {
        let (byte, rest) = blob.split_first()?;
        *blob = rest;
        length |= u64::from(byte & 0x7f) << (7 * group);
        if byte & 0x80 == 0 {
            let (bytes, rest) = blob.split_at_checked(usize::try_from(length).ok()?)?;
            *blob = rest;
            return Some(bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_come_back(headers in prop::collection::vec(
            (".{0,8}", prop::collection::vec(any::<u8>(), 0..300)), 1..5)) {
            prop_assert_eq!(decode(&encode(&headers).unwrap()).unwrap(), headers);
        }

        #[test]
        fn a_cut_or_strange_blob_never_panics(blob in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(&blob);
        }
    }

    #[test]
    fn the_framing_is_fixed() {
        assert_eq!(encode(&[]), None);
        assert_eq!(encode(&[("ab".into(), vec![7])]).unwrap(), [2, b'a', b'b', 1, 7]);
        let long = encode(&[("n".into(), vec![0; 300])]).unwrap();
        assert_eq!(long[..4], [1, b'n', 0xac, 0x02]);
        assert_eq!(decode(&long[..long.len() - 1]), None);
        assert_eq!(decode(&[0xff; 6]), None);
    }
}
