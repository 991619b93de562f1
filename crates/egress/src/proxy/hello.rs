//! What a ClientHello says about where it wants to go.

use rustls::server::Acceptor;

/// The extension that carries an encrypted ClientHello. Stands in the IANA registry.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// The type of a record that carries a handshake.
const HANDSHAKE: u8 = 22;

/// A ClientHello, as far as it concerns the proxy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The name of the server it wants, if it says so.
    pub(super) server_name: Option<String>,
    /// Whether a second, encrypted ClientHello may say something else. Some clients send such an extension with noise in
    /// it; that cannot be told apart, by design.
    pub(super) may_hide_another: bool,
    /// The protocols that it would speak within, in its order; `None` if it names none.
    pub(super) protocols: Option<Vec<Vec<u8>>>,
}

/// Reads a ClientHello as its bytes arrive.
pub(super) struct Reader {
    acceptor: Acceptor,
    seen: Vec<u8>,
}

/// The bytes are not the beginning of a TLS connection.
#[derive(Debug)]
pub(super) struct NotTls;

impl Reader {
    pub(super) fn new() -> Self {
        Self { acceptor: Acceptor::default(), seen: Vec::new() }
    }

    /// How much was read.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// Takes more bytes. `None` until the ClientHello is complete.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<Option<Hello>, NotTls> {
        self.seen.extend_from_slice(bytes);
        // rustls would wait for the rest of a record that is none.
        if self.seen.first().is_some_and(|&first| first != HANDSHAKE) {
            return Err(NotTls);
        }
        while !bytes.is_empty() {
            if self.acceptor.read_tls(&mut bytes).map_err(|_| NotTls)? == 0 {
                return Err(NotTls);
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Ok(Some(Hello {
                        server_name: hello.server_name().map(str::to_owned),
                        // rustls has read it, so it is well-formed; what cannot be walked here is not to be trusted.
                        protocols: hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()),
                        may_hide_another: has_extension(&self.seen, ENCRYPTED_CLIENT_HELLO).unwrap_or(true),
                    }));
                }
                Err(_) => return Err(NotTls),
            }
        }
        Ok(None)
    }
}

/// Whether a ClientHello, possibly cut into several records, has an extension. `None` if it cannot be walked.
fn has_extension(records: &[u8], wanted: u16) -> Option<bool> {
    let mut message = Vec::new();
    let mut rest = Walk(records);
    while !rest.0.is_empty() {
        let head = rest.take(3)?;
        let Some(payload) = rest.prefixed(2) else { break };
        if head[0] != HANDSHAKE {
            break;
        }
        message.extend_from_slice(payload);
    }
    // Type and length of the message, version, random; session id, cipher suites, compression methods.
    let mut walk = Walk(&message);
    walk.take(1)?;
    let mut walk = Walk(walk.prefixed(3)?);
    walk.take(2 + 32)?;
    walk.prefixed(1)?;
    walk.prefixed(2)?;
    walk.prefixed(1)?;
    if walk.0.is_empty() {
        return Some(false);
    }
    let mut extensions = Walk(walk.prefixed(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.take(2)?;
        extensions.prefixed(2)?;
        if kind == wanted.to_be_bytes() {
            return Some(true);
        }
    }
    Some(false)
}

/// Bytes that are taken from the front.
struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A length of so many bytes, and as much.
    fn prefixed(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let length = self.take(length_bytes)?.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        self.take(length)
    }
}
