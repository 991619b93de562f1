//! Text that nobody is to see.

use std::fmt;

use zeroize::Zeroizing;

/// A secret on its way into the vault, or out of it to where it is spent. It cannot be printed or written as JSON, and
/// its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over. It is not copied, so that nothing of it stays behind.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself. For crate `vault` alone: `cargo xtask tidy` refuses this word anywhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print_itself() {
        assert_eq!(format!("{:?}", Secret::new("hush".to_owned())), "[secret]");
    }
}
