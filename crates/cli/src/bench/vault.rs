//! `posthouse bench vault`: what spending a secret costs.
//!
//! A proxy opens a credential for each request, so opening must cost nothing beside the request. The floor is what nobody
//! can do without: one AES-256-GCM of the same library over the same bytes. We do two, because each secret has a key of its
//! own, and set both keys up anew each time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ::vault::{Credentials, Source};
use anyhow::Context as _;
use clap::Args;
use protocol::credential_request::CredentialCreate;
use protocol::vault_request::VaultCreate;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::json;
use store::Store;

use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::samples::Samples;
use super::{Common, runtime};

/// How long it takes to open a secret, and to find it first, beside the bare cipher.
#[derive(Args, Debug)]
pub(crate) struct VaultOptions {
    #[command(flatten)]
    pub(super) common: Common,
}

const URL: &str = "https://mcp.example.com/mcp";
/// Lengths of the secret, in bytes: a usual token, and the longest.
const LENGTHS: [usize; 2] = [64, 8_192];
/// Operations that are timed together: one alone is too short for a clock.
const BATCH: u32 = 200;
/// How many bare operations opening may cost. What is beyond two is keys set up anew, base64, and copies.
const AIM: f64 = 10.0;

pub(super) fn measure(options: &VaultOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(all(options, &place, machine))
}

async fn all(options: &VaultOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let quick = options.common.quick;
    let batches = if quick { 20 } else { 500 };
    let progress = Progress::new(LENGTHS.len());
    let store = Store::open(&place.join("data"), store::Options::default())?;
    let credentials = Credentials::new(store.clone(), Source::File(place.join("vault.key")));
    let workspace = store.ensure_workspace().await?;
    let columns = [
        ("secret_bytes", "secret bytes"),
        ("bare_micros", "bare µs"),
        ("open_micros", "open µs"),
        ("open_per_second", "open/s"),
        ("ratio", "ratio"),
        ("find_and_open_micros", "find and open µs"),
    ];
    let mut table = Table::new("open", "Opening a secret; medians", columns);
    let mut aims = Vec::new();
    for length in LENGTHS {
        progress.step(format!("a secret of {length} bytes"));
        let create = VaultCreate::parse(json!({"display_name": "bench"}))?;
        let vault = create.into_vault(store.ids().make(), store.now());
        let vaults = [store.create_vault(&workspace, vault).await?.id];
        let auth = json!({"type": "static_bearer", "mcp_server_url": URL, "token": "x".repeat(length)});
        let create = CredentialCreate::parse(json!({ "auth": auth }), store.now())?;
        credentials.create(&workspace, &vaults[0], create).await?;
        let found = credentials.for_mcp(&workspace, &vaults, URL).await?.context("it was just made")?;
        let (mut bare, mut opening, mut finding) = (Vec::new(), Vec::new(), Vec::new());
        let cipher = Bare::new(length);
        // By turns, so that what befalls the machine befalls all.
        for _ in 0..batches {
            let begun = Instant::now();
            for _ in 0..BATCH {
                cipher.open();
            }
            bare.push(each(begun, BATCH));
            let begun = Instant::now();
            for _ in 0..BATCH {
                black_box(credentials.open(&found).await?);
            }
            opening.push(each(begun, BATCH));
            let begun = Instant::now();
            let found = credentials.for_mcp(&workspace, &vaults, URL).await?.context("it is there")?;
            black_box(credentials.open(&found).await?);
            finding.push(each(begun, 1));
        }
        let micros = |times: Vec<Duration>| Samples::from_iter(times).p50() * 1_000.0;
        let (bare, opening, finding) = (micros(bare), micros(opening), micros(finding));
        table.row([
            length.into(),
            bare.into(),
            opening.into(),
            (1e6 / opening).into(),
            (opening / bare).into(),
            finding.into(),
        ]);
        aims.push(Aim {
            what: format!("opening {length} bytes, in bare operations"),
            bound: Bound::AtMost(AIM),
            measured: opening / bare,
            unit: "",
        });
    }
    drop(progress);
    store.close().await;
    Ok(Report {
        bench: "vault",
        machine,
        settings: vec![("batches", json!(batches)), ("batch", json!(BATCH)), ("quick", json!(quick))],
        tables: vec![table],
        aims,
        notes: vec!["Find and open reads the store, as a proxy does for each request.".to_owned()],
    })
}

fn each(begun: Instant, count: u32) -> Duration {
    begun.elapsed() / count
}

/// One sealed text under one key that is set up already.
struct Bare {
    key: LessSafeKey,
    sealed: Vec<u8>,
}

impl Bare {
    fn new(length: usize) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes");
        let key = LessSafeKey::new(key);
        let mut sealed = vec![b'x'; length];
        key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).expect("short enough");
        Self { key, sealed }
    }

    fn open(&self) {
        let mut sealed = self.sealed.clone();
        black_box(self.key.open_in_place(nonce(), Aad::empty(), &mut sealed).expect("sealed above"));
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}
