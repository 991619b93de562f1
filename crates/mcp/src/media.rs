//! Whether pictures and documents are what they say they are, as far as models' providers look.
//!
//! Nothing is decoded but base64. What is looked at is the frame of each format: how it begins, its dimensions, that its parts
//! follow one another, and that it has an end. That is where broken and truncated ones differ from whole ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::limits::SIDE_PIXELS_MAX;

/// Why something is not taken that is no, or no whole, picture or document of its kind.
pub(crate) const OTHER: &str = "it is not what it says it is";

/// Where a PDF says that it ends: readers look as far back.
const PDF_TAIL_BYTES: usize = 1_024;

/// Whether models take this kind at all.
pub(crate) fn is_known(media_type: &str) -> bool {
    matches!(media_type, "image/png" | "image/jpeg" | "image/gif" | "image/webp" | "application/pdf")
}

/// Whether it is base64 of a kind that models take, whole and not too large. `Err` says why not.
pub(crate) fn check(media_type: &str, data: &str) -> Result<(), &'static str> {
    let bytes = STANDARD.decode(data).map_err(|_| OTHER)?;
    let sides = match media_type {
        "image/png" => png(&bytes),
        "image/jpeg" => jpeg(&bytes),
        "image/gif" => gif(&bytes),
        "image/webp" => webp(&bytes),
        "application/pdf" => return if is_pdf(&bytes) { Ok(()) } else { Err(OTHER) },
        _ => return Err("models do not take its kind"),
    };
    match sides {
        Some((width, height)) if width == 0 || height == 0 => Err(OTHER),
        Some((width, height)) if width.max(height) > SIDE_PIXELS_MAX => Err("it has too many pixels"),
        Some(_) => Ok(()),
        None => Err(OTHER),
    }
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

/// Width and height of a whole PNG: its header, data, and its end.
fn png(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = Rest(bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?);
    let mut sides = None;
    let mut has_data = false;
    loop {
        let length = u32::from_be_bytes(rest.array()?);
        let kind: [u8; 4] = rest.array()?;
        let chunk = rest.take(usize::try_from(length).ok()?)?;
        let _checksum = rest.take(4)?;
        match &kind {
            b"IHDR" if sides.is_none() => {
                let mut chunk = Rest(chunk);
                sides = Some((u32::from_be_bytes(chunk.array()?), u32::from_be_bytes(chunk.array()?)));
            }
            // Nothing comes before the header.
            _ if sides.is_none() => return None,
            b"IDAT" => has_data = true,
            b"IEND" => return sides.filter(|_| has_data),
            _ => {}
        }
    }
}

/// Width and height of a whole JPEG: its segments up to the first scan, and an end after it.
fn jpeg(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = Rest(bytes.strip_prefix(b"\xff\xd8")?);
    let mut sides = None;
    loop {
        if rest.byte()? != 0xff {
            return None;
        }
        let mut marker = rest.byte()?;
        while marker == 0xff {
            marker = rest.byte()?;
        }
        let length = usize::from(u16::from_be_bytes(rest.array()?));
        let mut segment = Rest(rest.take(length.checked_sub(2)?)?);
        match marker {
            // Tables share the numbers of frames.
            0xc4 | 0xc8 | 0xcc => {}
            0xc0..=0xcf => {
                let _precision = segment.byte()?;
                let height = u16::from_be_bytes(segment.array()?);
                sides = Some((u16::from_be_bytes(segment.array()?).into(), height.into()));
            }
            // In what follows, a marker cannot be mistaken for data.
            0xda => return sides.filter(|_| rest.0.windows(2).any(|pair| pair == b"\xff\xd9")),
            0xd8 | 0xd9 => return None,
            _ => {}
        }
    }
}

/// Width and height of a whole GIF: all of its blocks, an image among them, and its end.
fn gif(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = Rest(bytes.strip_prefix(b"GIF89a").or_else(|| bytes.strip_prefix(b"GIF87a"))?);
    let sides = (u16::from_le_bytes(rest.array()?).into(), u16::from_le_bytes(rest.array()?).into());
    let [flags, _background, _aspect] = rest.array()?;
    skip_colors(&mut rest, flags)?;
    let mut has_image = false;
    loop {
        match rest.byte()? {
            0x21 => {
                let _label = rest.byte()?;
                skip_blocks(&mut rest)?;
            }
            0x2c => {
                let [.., flags] = rest.array::<9>()?;
                skip_colors(&mut rest, flags)?;
                let _code_size = rest.byte()?;
                skip_blocks(&mut rest)?;
                has_image = true;
            }
            0x3b => return has_image.then_some(sides),
            _ => return None,
        }
    }
}

fn skip_colors(rest: &mut Rest<'_>, flags: u8) -> Option<()> {
    let bytes = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    rest.take(bytes).map(drop)
}

fn skip_blocks(rest: &mut Rest<'_>) -> Option<()> {
    loop {
        match rest.byte()? {
            0 => return Some(()),
            length => drop(rest.take(length.into())?),
        }
    }
}

/// Width and height of a WebP that is as long as it says, as its first chunk says them.
fn webp(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = Rest(bytes.strip_prefix(b"RIFF")?);
    let length = usize::try_from(u32::from_le_bytes(rest.array()?)).ok()?;
    let mut rest = Rest(rest.take(length)?.strip_prefix(b"WEBP")?);
    let kind: [u8; 4] = rest.array()?;
    let length = usize::try_from(u32::from_le_bytes(rest.array()?)).ok()?;
    let mut chunk = Rest(rest.take(length)?);
    match &kind {
        b"VP8 " => {
            let _frame = chunk.take(3)?;
            chunk.0 = chunk.0.strip_prefix(b"\x9d\x01\x2a")?;
            let side = |bytes| u32::from(u16::from_le_bytes(bytes) & 0x3fff);
            Some((side(chunk.array()?), side(chunk.array()?)))
        }
        b"VP8L" => {
            chunk.0 = chunk.0.strip_prefix(b"\x2f")?;
            let bits = u32::from_le_bytes(chunk.array()?);
            Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        b"VP8X" => {
            let _flags = chunk.take(4)?;
            let [a, b, c] = chunk.array()?;
            let [d, e, f] = chunk.array()?;
            Some((u32::from_le_bytes([a, b, c, 0]) + 1, u32::from_le_bytes([d, e, f, 0]) + 1))
        }
        _ => None,
    }
}

/// Whether it begins as a PDF and ends as one: with where its table of contents is, and its last line.
fn is_pdf(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(PDF_TAIL_BYTES)..];
    let has = |word: &[u8]| tail.windows(word.len()).any(|window| window == word);
    bytes.starts_with(b"%PDF-") && has(b"startxref") && has(b"%%EOF")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png_of(width: u32, height: u32) -> Vec<u8> {
        let chunk = |kind: &[u8; 4], data: &[u8]| {
            let length = u32::try_from(data.len()).expect("short").to_be_bytes();
            [&length[..], kind, data, &[0; 4]].concat()
        };
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 6, 0, 0, 0]].concat();
        let parts = [chunk(b"IHDR", &header), chunk(b"IDAT", &[1, 2, 3]), chunk(b"IEND", &[])];
        [b"\x89PNG\r\n\x1a\n".to_vec(), parts.concat()].concat()
    }

    fn jpeg_of(width: u16, height: u16) -> Vec<u8> {
        let frame = [&[8][..], &height.to_be_bytes(), &width.to_be_bytes(), &[1, 1, 0x11, 0]].concat();
        let app = b"\xff\xe0\x00\x04ab";
        let head = [&b"\xff\xd8"[..], app, b"\xff\xc4\x00\x03x", b"\xff\xc0\x00\x0b", &frame].concat();
        [&head[..], b"\xff\xda\x00\x02", b"data\xff\x00data", b"\xff\xd9"].concat()
    }

    fn gif_of(width: u16, height: u16) -> Vec<u8> {
        let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
        let image = [&b"\x2c\0\0\0\0"[..], &sides, b"\0\x02\x02\x44\x01\0"].concat();
        [&b"GIF89a"[..], &sides, b"\x80\0\0rgbrgb", b"\x21\xf9\x04abcd\0", &image, b"\x3b"].concat()
    }

    fn webp_of(kind: &[u8; 4], chunk: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).expect("short").to_le_bytes();
        let body = [&b"WEBP"[..], kind, &length(chunk.len()), chunk].concat();
        [&b"RIFF"[..], &length(body.len()), &body].concat()
    }

    fn checked(kind: &str, bytes: &[u8]) -> Result<(), &'static str> {
        check(kind, &STANDARD.encode(bytes))
    }

    /// What has no end is not taken, wherever it was cut.
    fn is_whole_or_nothing(kind: &str, bytes: &[u8]) {
        assert_eq!(checked(kind, bytes), Ok(()), "{kind}");
        for end in 0..bytes.len() {
            assert_eq!(checked(kind, &bytes[..end]), Err(OTHER), "{kind} of {end} bytes");
        }
    }

    #[test]
    fn a_whole_picture_is_taken_and_a_part_of_one_is_not() {
        is_whole_or_nothing("image/png", &png_of(1, 1));
        is_whole_or_nothing("image/jpeg", &jpeg_of(640, 480));
        is_whole_or_nothing("image/gif", &gif_of(3, 2));
        is_whole_or_nothing("image/webp", &webp_of(b"VP8 ", b"\0\0\0\x9d\x01\x2a\x03\0\x02\0rest"));
        is_whole_or_nothing("image/webp", &webp_of(b"VP8L", b"\x2f\x02\x40\0\0"));
        is_whole_or_nothing("image/webp", &webp_of(b"VP8X", b"\0\0\0\0\x02\0\0\x01\0\0"));
        is_whole_or_nothing("application/pdf", b"%PDF-1.7\n1 0 obj\nstartxref\n9\n%%EOF");
        // What comes after the end harms nobody.
        assert_eq!(checked("image/png", &[&png_of(1, 1)[..], b"more"].concat()), Ok(()));
        assert_eq!(checked("image/jpeg", &[&jpeg_of(1, 1)[..], b"\0\0"].concat()), Ok(()));
    }

    #[test]
    fn sides_are_read_and_have_bounds() {
        assert_eq!(png(&png_of(640, 480)), Some((640, 480)));
        assert_eq!(jpeg(&jpeg_of(640, 480)), Some((640, 480)));
        assert_eq!(gif(&gif_of(640, 480)), Some((640, 480)));
        assert_eq!(webp(&webp_of(b"VP8L", b"\x2f\x02\x40\0\0")), Some((3, 2)));
        assert_eq!(webp(&webp_of(b"VP8X", b"\0\0\0\0\x02\0\0\x01\0\0")), Some((3, 2)));
        assert_eq!(checked("image/png", &png_of(8_000, 8_000)), Ok(()));
        assert_eq!(checked("image/png", &png_of(8_001, 1)), Err("it has too many pixels"));
        assert_eq!(checked("image/gif", &gif_of(0, 5)), Err(OTHER));
    }

    #[test]
    fn what_is_something_else_is_not_taken() {
        assert_eq!(checked("image/jpeg", &png_of(1, 1)), Err(OTHER));
        assert_eq!(check("image/png", "iVBORw0KGgoAAAAA"), Err(OTHER));
        assert_eq!(check("image/png", &format!("{}\n", STANDARD.encode(png_of(1, 1)))), Err(OTHER));
        assert_eq!(check("image/svg+xml", "PHN2Zy8+"), Err("models do not take its kind"));
    }
}
