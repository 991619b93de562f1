//! A certificate authority that one sandbox trusts, and nobody else.
//!
//! It is made out of a seed, so that any server that knows the seed is the same authority as the one that made the
//! sandbox. Its private key never leaves the server; the sandbox gets the certificate.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use p256::pkcs8::EncodePrivateKey as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::host::Host;

/// How many hosts' certificates are kept. A credential names at most sixteen hosts, but its wildcards stand for any number.
const KEPT_MAX: usize = 64;
/// The years between which its certificates are good: sandboxes are restored after months, and clocks differ.
const YEARS: (i32, i32) = (2024, 2124);

/// The authority cannot be made, or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The seed is no key: one in four thousand million is not. Take another.
    #[error("the seed is no private key")]
    Seed,
    /// The library refused.
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The library refused.
    #[error("a certificate's key cannot be used: {0}")]
    Key(#[from] rustls::Error),
}

/// The authority of one sandbox.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    kept: Mutex<HashMap<Host, Arc<CertifiedKey>>>,
}

impl Authority {
    /// The authority of this name, made of 32 secret bytes. The same name and seed give the same authority, although not the
    /// same bytes of its certificate: whoever trusts one of them trusts what the other has signed.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, AuthorityError> {
        let key = p256::SecretKey::from_slice(seed).map_err(|_| AuthorityError::Seed)?;
        let key = key.to_pkcs8_der().map_err(|_| AuthorityError::Seed)?;
        let key = KeyPair::try_from(key.as_bytes())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Posthouse credentials of {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(YEARS.0, 1, 1), date_time_ymd(YEARS.1, 1, 1));
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, kept: Mutex::default() })
    }

    /// Its own certificate, in PEM: what the sandbox trusts.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate in a host's name, and its key.
    pub(crate) fn certified(&self, host: &Host) -> Result<Arc<CertifiedKey>, AuthorityError> {
        if let Some(kept) = self.kept().get(host) {
            return Ok(Arc::clone(kept));
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([host.to_string()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Posthouse, in the place of the host");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (date_time_ymd(YEARS.0, 1, 1), date_time_ymd(YEARS.1, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        let made = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
        let mut kept = self.kept();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(host.clone(), Arc::clone(&made));
        Ok(made)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Host, Arc<CertifiedKey>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}
