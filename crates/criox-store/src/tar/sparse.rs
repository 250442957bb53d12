//! Sparse maps: where the stored bytes of a file with holes belong.

use super::Extent;
use super::header::number;

/// Most extents of one file; what the stream itself says about them is bounded by other limits.
const MAX_EXTENTS: usize = 1 << 18;

/// Pairs of 12-byte numbers, up to the first empty one; whether all places were taken, so that more may follow.
pub(super) fn parse_old(field: &[u8], extents: &mut Vec<Extent>) -> Result<bool, &'static str> {
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            return Ok(false);
        }
        let value = |bytes| {
            number(bytes).and_then(|n| u64::try_from(n).map_err(|_| "sparse map has a negative number"))
        };
        push(extents, Extent { offset: value(&pair[..12])?, length: value(&pair[12..])? })?;
    }
    Ok(true)
}

/// How many lines an inline map has, by the line that it begins with.
pub(super) fn inline_lines(first_block: &[u8]) -> Result<usize, &'static str> {
    let end = first_block.iter().position(|&b| b == b'\n').ok_or("malformed sparse map")?;
    let count = usize::try_from(decimal(&first_block[..end])?).ok().filter(|count| *count <= MAX_EXTENTS);
    count.map(|count| 1 + 2 * count).ok_or("sparse map is too long")
}

/// The count of extents, then offset and length of each, in lines, all of which are there.
pub(super) fn parse_inline(text: &[u8], lines: usize) -> Result<Vec<Extent>, &'static str> {
    let mut numbers = text.split(|&b| b == b'\n').take(lines).skip(1).map(decimal);
    let mut extents = Vec::new();
    while let (Some(offset), Some(length)) = (numbers.next(), numbers.next()) {
        push(&mut extents, Extent { offset: offset?, length: length? })?;
    }
    Ok(extents)
}

/// Numbers with commas between them.
pub(super) fn parse_list(text: &[u8]) -> Result<Vec<Extent>, &'static str> {
    let numbers = text.split(|&b| b == b',').map(decimal).collect::<Result<Vec<_>, _>>()?;
    if numbers.len() % 2 != 0 || numbers.len() / 2 > MAX_EXTENTS {
        return Err("sparse map has a wrong length");
    }
    Ok(numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

pub(super) fn push(extents: &mut Vec<Extent>, extent: Extent) -> Result<(), &'static str> {
    if extents.len() >= MAX_EXTENTS {
        return Err("sparse map is too long");
    }
    extents.push(extent);
    Ok(())
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "malformed decimal number";
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(BAD)
}

/// Extents must be in order, inside the file, and hold exactly the stored bytes.
pub(super) fn check(extents: &[Extent], size: u64, stored: u64) -> Result<(), &'static str> {
    const BAD: &str = "sparse map doesn't fit its file";
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in extents {
        if extent.offset < end {
            return Err(BAD);
        }
        end = extent.offset.checked_add(extent.length).ok_or(BAD)?;
        sum = sum.checked_add(extent.length).ok_or(BAD)?;
    }
    if end > size || sum != stored || size > i64::MAX.cast_unsigned() { Err(BAD) } else { Ok(()) }
}
