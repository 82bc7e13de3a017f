//! The registry's framing of values: a zero byte, the schema's id (u32 big-endian), the Avro datum.

/// What a framed value begins with.
const MAGIC: u8 = 0;

/// The bytes before the datum.
pub const HEADER: usize = 5;

/// The id and the datum of a framed value; `None` where it has no such header.
pub fn split(value: &[u8]) -> Option<(u32, &[u8])> {
    let (header, datum) = value.split_at_checked(HEADER)?;
    let id = header.strip_prefix(&[MAGIC])?;
    Some((u32::from_be_bytes(id.try_into().ok()?), datum))
}

/// Puts the header before a datum.
pub fn join(id: u32, datum: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + datum.len());
    out.push(MAGIC);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(datum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_comes_back_and_nothing_else_is_taken_for_it() {
        for id in [0, 1, 256, u32::MAX] {
            assert_eq!(split(&join(id, b"xy")), Some((id, &b"xy"[..])));
        }
        assert_eq!(join(0x0102_0304, b"d"), [0, 1, 2, 3, 4, b'd']);
        assert_eq!(split(&[0, 0, 0, 0, 9]), Some((9, &[][..])));
        for other in [&[][..], &[0, 0, 0, 0], &[0xC3, 1, 2, 3, 4, 5], &[1, 0, 0, 0, 1, 2]] {
            assert_eq!(split(other), None, "{other:?}");
        }
    }
}
