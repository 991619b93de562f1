//! The tar format, as far as [`super::pack`] uses it: a header of 512 bytes in the ustar form for each entry, before it an
//! extended header for what does not fit, and the sparse files of GNU tar's PAX form 1.0.

use std::io::{self, Read, Write};

use super::{EXTENTS_MAX, Error, PATH_BYTES_MAX, XATTR_BYTES_MAX, readable};

/// Headers and contents are padded to this.
pub const BLOCK_BYTES: usize = 512;
/// An extended header: two paths, all attributes, and some numbers.
const EXTENDED_BYTES_MAX: usize = 2 * PATH_BYTES_MAX + 2 * XATTR_BYTES_MAX + 4096;
/// The field for a name in the old header.
const NAME_FIELD_BYTES: usize = 100;
/// What fits into 11 and 7 octal digits.
const SIZE_FIELD_MAX: u64 = 0o777_7777_7777;
const ID_FIELD_MAX: u32 = 0o777_7777;

/// One file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the tree's root, `/` between names.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the three special bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// And group.
    pub gid: u32,
    /// When it last changed.
    pub modified: Time,
    /// Extended attributes, by name.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file whose bytes follow.
    File {
        /// Its length.
        size: u64,
    },
    /// A regular file with holes, of which only these pieces follow, in order.
    Sparse {
        /// Its length.
        size: u64,
        /// Where there are bytes.
        extents: Vec<Extent>,
    },
    /// A folder.
    Folder,
    /// A symbolic link.
    Link {
        /// Where it points; any bytes.
        to: Vec<u8>,
    },
    /// Another name of a file that came before.
    HardLink {
        /// That file's path.
        to: Vec<u8>,
    },
    /// A FIFO.
    Pipe,
    /// A character device.
    Device {
        /// Its numbers; 0 and 0 is the whiteout of an overlay.
        major: u32,
        /// The second.
        minor: u32,
    },
    /// Something that [`super::pack`] never writes.
    Other(u8),
}

/// A piece of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is; 0 only to mark the end of the file.
    pub length: u64,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, before 1970 negative.
    pub seconds: i64,
    /// Below a billion, always counted forwards.
    pub nanoseconds: u32,
}

/// Writes an entry's headers. The bytes of a file follow with [`pad`] behind them.
pub fn write(entry: &Entry, into: &mut impl Write) -> io::Result<()> {
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| write_record(&mut records, key, value);
    let (flag, link, mut size): (u8, &[u8], u64) = match &entry.kind {
        Kind::File { size } | Kind::Sparse { size, .. } => (b'0', b"", *size),
        Kind::Folder => (b'5', b"", 0),
        Kind::Link { to } => (b'2', to, 0),
        Kind::HardLink { to } => (b'1', to, 0),
        Kind::Pipe => (b'6', b"", 0),
        Kind::Device { .. } => (b'3', b"", 0),
        Kind::Other(flag) => (*flag, b"", 0),
    };
    let mut map = Vec::new();
    if let Kind::Sparse { size: real_size, extents } = &entry.kind {
        map = sparse_map(extents);
        size = map.len() as u64 + extents.iter().map(|extent| extent.length).sum::<u64>();
        record(b"GNU.sparse.major", b"1");
        record(b"GNU.sparse.minor", b"0");
        record(b"GNU.sparse.name", &entry.path);
        record(b"GNU.sparse.realsize", real_size.to_string().as_bytes());
    } else if entry.path.len() > NAME_FIELD_BYTES {
        record(b"path", &entry.path);
    }
    if link.len() > NAME_FIELD_BYTES {
        record(b"linkpath", link);
    }
    if size > SIZE_FIELD_MAX {
        record(b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if id > ID_FIELD_MAX {
            record(key, id.to_string().as_bytes());
        }
    }
    let Time { seconds, nanoseconds } = entry.modified;
    let whole = u64::try_from(seconds).ok().filter(|seconds| nanoseconds == 0 && *seconds <= SIZE_FIELD_MAX);
    if whole.is_none() {
        record(b"mtime", time_text(entry.modified).as_bytes());
    }
    for (name, value) in &entry.attributes {
        let mut key = b"SCHILY.xattr.".to_vec();
        escape(name, &mut key);
        record(&key, value);
    }
    if !records.is_empty() {
        let header =
            Header { name: b"PaxHeader", flag: b'x', size: records.len() as u64, ..Header::default() };
        into.write_all(&header.encode())?;
        into.write_all(&records)?;
        pad(records.len() as u64, into)?;
    }
    let device = match entry.kind {
        Kind::Device { major, minor } => (major, minor),
        _ => (0, 0),
    };
    let header = Header {
        name: &entry.path[..entry.path.len().min(NAME_FIELD_BYTES)],
        link: &link[..link.len().min(NAME_FIELD_BYTES)],
        flag,
        size: size.min(SIZE_FIELD_MAX),
        mode: entry.mode,
        uid: entry.uid.min(ID_FIELD_MAX),
        gid: entry.gid.min(ID_FIELD_MAX),
        modified: u64::try_from(seconds).unwrap_or(0).min(SIZE_FIELD_MAX),
        device,
    };
    into.write_all(&header.encode())?;
    into.write_all(&map)
}

/// Zeros up to the next block.
pub fn pad(written: u64, into: &mut impl Write) -> io::Result<()> {
    into.write_all(&[0; BLOCK_BYTES][..padding(written)])
}

fn padding(written: u64) -> usize {
    let over = (written % BLOCK_BYTES as u64) as usize;
    if over == 0 { 0 } else { BLOCK_BYTES - over }
}

/// The two blocks of zeros at the end.
pub fn finish(into: &mut impl Write) -> io::Result<()> {
    into.write_all(&[0; 2 * BLOCK_BYTES])
}

/// Reads the next entry's headers; `None` at the end of the archive.
///
/// Whoever reads the bytes of a file calls [`skip_padding`] after them.
pub fn read(from: &mut impl Read) -> Result<Option<Entry>, Error> {
    let mut block = read_block(from)?;
    if block.iter().all(|byte| *byte == 0) {
        return match read_block(from)?.iter().all(|byte| *byte == 0) {
            true => Ok(None),
            false => Err(Error::Corrupt("only half of its end is there")),
        };
    }
    let mut extended = Extended::default();
    if typeflag(&block) == b'x' {
        let size = usize::try_from(parse_header(&block)?.size).unwrap_or(usize::MAX);
        if size > EXTENDED_BYTES_MAX {
            return Err(Error::Corrupt("an extended header is too large"));
        }
        let mut records = vec![0; size];
        read_exact(from, &mut records)?;
        skip_padding(size as u64, from)?;
        extended = Extended::parse(&records)?;
        block = read_block(from)?;
    }
    let header = parse_header(&block)?;
    entry(&header, extended, from).map(Some)
}

/// Passes over the zeros behind a file's bytes.
pub fn skip_padding(size: u64, from: &mut impl Read) -> Result<(), Error> {
    let mut rest = [0; BLOCK_BYTES];
    read_exact(from, &mut rest[..padding(size)])
}

fn entry(header: &Header<'_>, extended: Extended, from: &mut impl Read) -> Result<Entry, Error> {
    let Extended { path, link, size, uid, gid, modified, sparse_name, real_size, is_sparse, attributes } =
        extended;
    let path = sparse_name.or(path).unwrap_or_else(|| header.name.to_vec());
    let link = link.unwrap_or_else(|| header.link.to_vec());
    let size = size.unwrap_or(header.size);
    let kind = match header.flag {
        b'0' if is_sparse => {
            let size_real = real_size.ok_or(Error::Corrupt("a sparse file has no size"))?;
            let (extents, map_bytes) = read_sparse_map(from)?;
            check_extents(&extents, size_real, size.checked_sub(map_bytes))
                .map_err(|reason| Error::Refused { path: readable(&path), reason })?;
            Kind::Sparse { size: size_real, extents }
        }
        b'0' => Kind::File { size },
        b'1' => Kind::HardLink { to: link },
        b'2' => Kind::Link { to: link },
        b'3' => Kind::Device { major: header.device.0, minor: header.device.1 },
        b'5' => Kind::Folder,
        b'6' => Kind::Pipe,
        other => Kind::Other(other),
    };
    if size != 0 && !matches!(kind, Kind::File { .. } | Kind::Sparse { .. }) {
        return Err(Error::Refused { path: readable(&path), reason: "only files have bytes" });
    }
    Ok(Entry {
        path,
        kind,
        mode: header.mode,
        uid: uid.unwrap_or(header.uid),
        gid: gid.unwrap_or(header.gid),
        modified: modified
            .unwrap_or(Time { seconds: i64::try_from(header.modified).unwrap_or(i64::MAX), nanoseconds: 0 }),
        attributes,
    })
}

fn check_extents(extents: &[Extent], size: u64, data: Option<u64>) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0, 0_u64);
    for Extent { offset, length } in extents {
        if *offset < end {
            return Err("its pieces overlap");
        }
        end = offset.checked_add(*length).filter(|end| *end <= size).ok_or("a piece lies behind its end")?;
        sum += length;
    }
    if Some(sum) == data { Ok(()) } else { Err("its pieces are not as long as its bytes") }
}

fn sparse_map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len()).into_bytes();
    for Extent { offset, length } in extents {
        map.extend(format!("{offset}\n{length}\n").into_bytes());
    }
    map.resize(map.len() + padding(map.len() as u64), 0);
    map
}

/// The map in front of a sparse file's pieces, and how many bytes it takes.
fn read_sparse_map(from: &mut impl Read) -> Result<(Vec<Extent>, u64), Error> {
    let (mut block, mut at, mut taken) = ([0; BLOCK_BYTES], BLOCK_BYTES, 0);
    let mut number = || -> Result<u64, Error> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK_BYTES {
                block = read_block(from)?;
                taken += BLOCK_BYTES as u64;
                at = 0;
            }
            at += 1;
            match block[at - 1] {
                b'\n' => return decimal(&digits),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(Error::Corrupt("a number is too long")),
            }
        }
    };
    let count = number()?;
    if count > EXTENTS_MAX as u64 {
        return Err(Error::Corrupt("a sparse file has too many pieces"));
    }
    let mut extents = Vec::new();
    for _ in 0..count {
        extents.push(Extent { offset: number()?, length: number()? });
    }
    Ok((extents, taken))
}

fn write_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().into_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    sparse_name: Option<Vec<u8>>,
    real_size: Option<u64>,
    is_sparse: bool,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extended {
    fn parse(mut records: &[u8]) -> Result<Self, Error> {
        const BROKEN: Error = Error::Corrupt("an extended header is broken");
        let id = |value: &[u8]| decimal(value).and_then(|id| u32::try_from(id).map_err(|_| BROKEN));
        let mut extended = Self::default();
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or(BROKEN)?;
            let length = usize::try_from(decimal(&records[..space])?).map_err(|_| BROKEN)?;
            let record = records.get(space + 1..length).ok_or(BROKEN)?;
            records = &records[length..];
            let record = record.strip_suffix(b"\n").ok_or(BROKEN)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BROKEN)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => extended.size = Some(decimal(value)?),
                b"uid" => extended.uid = Some(id(value)?),
                b"gid" => extended.gid = Some(id(value)?),
                b"mtime" => extended.modified = Some(parse_time(value).ok_or(BROKEN)?),
                b"GNU.sparse.name" => extended.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.realsize" => extended.real_size = Some(decimal(value)?),
                b"GNU.sparse.major" if value == b"1" => extended.is_sparse = true,
                b"GNU.sparse.minor" if value == b"0" => {}
                _ => match key.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => extended.attributes.push((unescape(name), value.to_vec())),
                    None => return Err(Error::Corrupt("an extended header says something unknown")),
                },
            }
        }
        Ok(extended)
    }
}

/// An attribute's name may hold what separates it from its value.
fn escape(name: &[u8], into: &mut Vec<u8>) {
    for byte in name {
        match byte {
            b'%' => into.extend(b"%25"),
            b'=' => into.extend(b"%3D"),
            other => into.push(*other),
        }
    }
}

fn unescape(mut name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let [first, rest @ ..] = name {
        let (byte, rest) = match name {
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            _ => (*first, rest),
        };
        plain.push(byte);
        name = rest;
    }
    plain
}

const BILLION: i128 = 1_000_000_000;

fn time_text(Time { seconds, nanoseconds }: Time) -> String {
    let total = i128::from(seconds) * BILLION + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    format!("{sign}{}.{:09}", total.abs() / BILLION, total.abs() % BILLION)
}

fn parse_time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    let total = sign * (i128::from(whole) * BILLION + fraction);
    Some(Time {
        seconds: i64::try_from(total.div_euclid(BILLION)).ok()?,
        nanoseconds: u32::try_from(total.rem_euclid(BILLION)).ok()?,
    })
}

fn decimal(digits: &[u8]) -> Result<u64, Error> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or(Error::Corrupt("a number is none"))
}

/// The old header's fields.
#[derive(Default)]
struct Header<'a> {
    name: &'a [u8],
    link: &'a [u8],
    flag: u8,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    modified: u64,
    device: (u32, u32),
}

impl Header<'_> {
    fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..self.name.len()].copy_from_slice(self.name);
        octal(&mut block[100..108], self.mode.into());
        octal(&mut block[108..116], self.uid.into());
        octal(&mut block[116..124], self.gid.into());
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], self.modified);
        block[156] = self.flag;
        block[157..157 + self.link.len()].copy_from_slice(self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        let sum = checksum(&block);
        octal(&mut block[148..155], sum);
        block[155] = b' ';
        block
    }
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    // What does not fit stands in an extended header.
    field[..digits].copy_from_slice(&text.as_bytes()[text.len() - digits..]);
}

/// The sum of all bytes, the sum's own field taken as spaces.
fn checksum(block: &[u8; BLOCK_BYTES]) -> u64 {
    let spaces = u64::from(b' ') * 8;
    let all: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    all - block[148..156].iter().map(|byte| u64::from(*byte)).sum::<u64>() + spaces
}

fn typeflag(block: &[u8; BLOCK_BYTES]) -> u8 {
    block[156]
}

fn parse_header(block: &[u8; BLOCK_BYTES]) -> Result<Header<'_>, Error> {
    if &block[257..265] != b"ustar\x0000" {
        return Err(Error::Corrupt("a header is not of the expected form"));
    }
    if field(&block[148..156])? != checksum(block) {
        return Err(Error::Corrupt("a header's checksum is wrong"));
    }
    let small = |bytes: &[u8]| {
        field(bytes)
            .and_then(|value| u32::try_from(value).map_err(|_| Error::Corrupt("a number is too large")))
    };
    // Nothing of ours uses the second part of a name.
    if block[345] != 0 {
        return Err(Error::Corrupt("a header is not of the expected form"));
    }
    Ok(Header {
        name: until_zero(&block[..100]),
        link: until_zero(&block[157..257]),
        flag: typeflag(block),
        size: field(&block[124..136])?,
        mode: small(&block[100..108])?,
        uid: small(&block[108..116])?,
        gid: small(&block[116..124])?,
        modified: field(&block[136..148])?,
        device: (small(&block[329..337])?, small(&block[337..345])?),
    })
}

fn until_zero(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn field(field: &[u8]) -> Result<u64, Error> {
    let digits = field.iter().take_while(|byte| !matches!(byte, 0 | b' '));
    digits.into_iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value * 8 + u64::from(digit - b'0')),
        _ => Err(Error::Corrupt("a number is none")),
    })
}

fn read_block(from: &mut impl Read) -> Result<[u8; BLOCK_BYTES], Error> {
    let mut block = [0; BLOCK_BYTES];
    read_exact(from, &mut block)?;
    Ok(block)
}

fn read_exact(from: &mut impl Read, into: &mut [u8]) -> Result<(), Error> {
    from.read_exact(into).map_err(|cause| match cause.kind() {
        io::ErrorKind::UnexpectedEof => Error::Corrupt("it ends too early"),
        _ => Error::Io { doing: "read the archive".to_owned(), cause },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(entry: &Entry) -> Entry {
        let mut bytes = Vec::new();
        write(entry, &mut bytes).unwrap();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        read(&mut bytes.as_slice()).unwrap().unwrap()
    }

    #[test]
    fn an_entry_survives_a_round_trip_whatever_does_not_fit_into_the_old_header() {
        let plain = Entry {
            path: b"a".to_vec(),
            kind: Kind::File { size: 7 },
            mode: 0o640,
            uid: 3,
            gid: 4,
            modified: Time { seconds: 5, nanoseconds: 0 },
            attributes: Vec::new(),
        };
        let attributes =
            vec![(b"user.a=b%3D\xff".to_vec(), b"\n\0=".to_vec()), (b"user.long".to_vec(), vec![7; 70_000])];
        let entries = [
            plain.clone(),
            Entry { path: vec![b'x'; 100], ..plain.clone() },
            Entry { path: [b'\xff', b'\n'].repeat(1000), ..plain.clone() },
            Entry { kind: Kind::Link { to: vec![b'y'; 4000] }, ..plain.clone() },
            Entry { kind: Kind::HardLink { to: b"b c".to_vec() }, ..plain.clone() },
            Entry { kind: Kind::File { size: 1 << 40 }, uid: 1 << 30, gid: 1 << 31, ..plain.clone() },
            Entry { modified: Time { seconds: -2, nanoseconds: 500_000_000 }, ..plain.clone() },
            Entry { modified: Time { seconds: i64::MAX, nanoseconds: 999_999_999 }, ..plain.clone() },
            Entry { kind: Kind::Device { major: 0, minor: 0 }, attributes, ..plain.clone() },
            Entry { kind: Kind::Pipe, mode: 0o7777, ..plain.clone() },
            Entry {
                kind: Kind::Sparse {
                    size: 1 << 40,
                    extents: vec![
                        Extent { offset: 4096, length: 5 },
                        Extent { offset: 1 << 39, length: 1 },
                        Extent { offset: 1 << 40, length: 0 },
                    ],
                },
                ..plain
            },
        ];
        for entry in entries {
            assert_eq!(round_trip(&entry), entry);
        }
    }

    #[test]
    fn a_header_with_one_byte_changed_is_noticed() {
        let entry = Entry {
            path: b"name".to_vec(),
            kind: Kind::Folder,
            mode: 0o755,
            uid: 0,
            gid: 0,
            modified: Time::default(),
            attributes: Vec::new(),
        };
        let mut bytes = Vec::new();
        write(&entry, &mut bytes).unwrap();
        for place in 0..345 {
            let mut changed = bytes.clone();
            changed[place] = changed[place].wrapping_add(1);
            // The byte behind the sum's digits ends them, whatever it is.
            let unread = place == 155;
            assert_eq!(read(&mut changed.as_slice()).is_err(), !unread, "byte {place}");
        }
    }
}
