//! How an archive travels between two processes of which neither believes the other: in pieces, with a last word that says
//! whether it was whole.
//!
//! ```text
//! mark, 16 bytes │ (length, u32 little-endian, never 0 │ bytes)… │ 0 │ length of the last word │ the last word as JSON
//! ```
//!
//! The mark stands only before what a container sends. The line stays open from one archive to the next, and one that was
//! broken off leaves bytes on it: whoever asks for an archive chooses a mark, and skips everything up to it.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// As much as is sent at once.
const PIECE_BYTES_MAX: usize = 128 << 10;
/// A last word is a sentence or three numbers.
const WORD_BYTES_MAX: usize = 4096;
/// What a former archive may have left on the line: what sockets hold, and a piece. Anything longer is no accident.
const SKIPPED_BYTES_MAX: u64 = 16 << 20;

/// Says that what follows it is what was asked for.
pub type Mark = [u8; 16];

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// All of it has come.
    Whole {
        /// Entries of every kind.
        entries: u64,
        /// Bytes of files.
        bytes: u64,
        /// What was left out.
        left_out: u64,
    },
    /// It breaks off here, and why.
    Broken(String),
}

/// Sends an archive that is written to it.
pub struct Sender<W>(pub W);

impl<W: Write> Write for Sender<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        if !piece.is_empty() {
            self.0.write_all(&(piece.len() as u32).to_le_bytes())?;
            self.0.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Sender<W> {
    /// Says how it ended.
    pub fn finish(mut self, word: &Word) -> io::Result<()> {
        let mut word = word.clone();
        if let Word::Broken(why) = &mut word {
            // As JSON a character becomes six bytes at most.
            why.truncate(why.floor_char_boundary(WORD_BYTES_MAX / 8));
        }
        let text = serde_json::to_vec(&word)?;
        self.0.write_all(&0_u32.to_le_bytes())?;
        self.0.write_all(&(text.len() as u32).to_le_bytes())?;
        self.0.write_all(&text)?;
        self.0.flush()
    }
}

/// Reads an archive that is sent, up to its end. One that ends without a last word is an error.
pub struct Receiver<R> {
    from: R,
    /// Of the current piece.
    left: usize,
    /// Of all pieces.
    bytes_left: u64,
    word: Option<Word>,
}

impl<R: Read> Receiver<R> {
    /// Reads no more than `bytes_max`.
    pub fn new(from: R, bytes_max: u64) -> Self {
        Self { from, left: 0, bytes_left: bytes_max, word: None }
    }

    /// Skips everything up to the mark.
    pub fn skip_to(&mut self, mark: &Mark) -> io::Result<()> {
        let mut seen = Mark::default();
        self.from.read_exact(&mut seen)?;
        let mut skipped = 0;
        while seen != *mark {
            skipped += 1;
            if skipped > SKIPPED_BYTES_MAX {
                return Err(io::Error::other("the archive does not begin"));
            }
            seen.rotate_left(1);
            self.from.read_exact(&mut seen[15..])?;
        }
        Ok(())
    }

    /// The last word, once all has been read.
    pub fn word(self) -> Option<Word> {
        self.word
    }

    fn length(&mut self) -> io::Result<usize> {
        let mut length = [0; 4];
        self.from.read_exact(&mut length)?;
        Ok(u32::from_le_bytes(length) as usize)
    }
}

impl<R: Read> Read for Receiver<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.word.is_some() || into.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            self.left = self.length()?;
            if self.left == 0 {
                let length = self.length()?;
                if length > WORD_BYTES_MAX {
                    return Err(io::Error::other("the last word is too long"));
                }
                let mut text = vec![0; length];
                self.from.read_exact(&mut text)?;
                let word = serde_json::from_slice(&text)?;
                if let Word::Broken(why) = word {
                    return Err(io::Error::other(why));
                }
                self.word = Some(word);
                return Ok(0);
            }
        }
        let wanted = into.len().min(self.left);
        let count = self.from.read(&mut into[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        self.bytes_left = self
            .bytes_left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other("the archive is longer than its sandbox can be"))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Word = Word::Whole { entries: 1, bytes: 2, left_out: 3 };

    fn sent(word: &Word) -> Vec<u8> {
        let mut line = Vec::new();
        let mut sender = Sender(&mut line);
        sender.write_all(&[7; 300_000]).unwrap();
        sender.finish(word).unwrap();
        line
    }

    #[test]
    fn what_is_sent_arrives_with_its_last_word_whatever_lay_on_the_line_before() {
        let mark: Mark = *b"0123456789abcdef";
        let line = [&b"left over 0123456789"[..], &mark, &sent(&WHOLE), b"what follows"].concat();
        let mut receiver = Receiver::new(line.as_slice(), 300_000);
        receiver.skip_to(&mark).unwrap();
        let mut bytes = Vec::new();
        receiver.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes.len(), receiver.word()), (300_000, Some(WHOLE)));
    }

    #[test]
    fn what_is_cut_off_broken_or_too_long_is_an_error() {
        let read = |line: &[u8], bytes_max| {
            io::copy(&mut Receiver::new(line, bytes_max), &mut io::sink()).map_err(|error| error.to_string())
        };
        let whole = sent(&WHOLE);
        for cut in [0, 3, 4, 1000, whole.len() - 1] {
            assert!(read(&whole[..cut], 300_000).is_err(), "cut at {cut}");
        }
        assert!(read(&whole, 299_999).unwrap_err().contains("longer"));
        let broken = sent(&Word::Broken("é".repeat(9000)));
        assert!(read(&broken, 300_000).unwrap_err().starts_with("éé"));
        let mut endless = Receiver::new(io::repeat(1), u64::MAX);
        assert!(endless.skip_to(&[2; 16]).is_err());
    }
}
