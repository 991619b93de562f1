//! `posthouse bench git`: what a session waits for its repository, and what the way of its git through the exit costs.
//!
//! Beside git itself on the same server in the same run: a plain clone for the first, the same request on a connection that is
//! open for the second.

mod server;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use broker::Broker;
use clap::Args;
use egress::{Guard, Limits, Policy, PrivateHosts, Proxy, Who};
use protocol::resource::{Repository, Resource};
use repositories::{Repositories, Settings};
use sandbox::{Equipment, Provider as _, Resources, Tree};
use serde_json::json;
use session::Record;
use store::{NewSession, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use vault::{Credentials, Source};

use super::history::{agent, record};
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::samples::Samples;
use super::sandbox::{FENCE, sandbox_id, supervised};
use super::{Common, runtime};
use server::{REPOSITORY, Server};

/// What is cloned: 50 MB that do not compress.
const BYTES: usize = 50 << 20;
const BYTES_QUICK: usize = 5 << 20;
const REQUEST: &str = "info/refs?service=git-upload-pack";

/// Clones of a repository cold and kept, and the cost of a request through a sandbox's exit.
#[derive(Args, Debug)]
pub(crate) struct GitOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// Clones of each kind. [default: 10; 2 with --quick]
    #[arg(long, value_name = "N")]
    clones: Option<usize>,
    /// Requests of each kind. [default: 500; 20 with --quick]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
}

pub(super) fn measure(options: &GitOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &GitOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let quick = options.common.quick;
    let clones = options.clones.unwrap_or(if quick { 2 } else { 10 }).max(1);
    let requests = options.requests.unwrap_or(if quick { 20 } else { 500 }).max(1);
    let bytes = if quick { BYTES_QUICK } else { BYTES };
    let progress = Progress::new(4);
    progress.step("making a repository");
    let world = World::start(place, bytes, options.common.seed).await?;
    progress.step("cloning");
    let cloned = world.clones(place, clones).await?;
    progress.step("bringing it into sandboxes");
    let brought = world.sandboxes(place, clones).await?;
    progress.step("asking through the exit");
    let asked = world.requests(requests).await?;
    drop(progress);
    world.store.close().await;
    let megabytes = bytes >> 20;
    Ok(Report {
        bench: "git",
        machine,
        settings: vec![
            ("seed", json!(options.common.seed)),
            ("clones", json!(clones)),
            ("requests", json!(requests)),
            ("repository_mb", json!(megabytes)),
            ("quick", json!(quick)),
        ],
        aims: vec![
            Aim {
                what: "A kept repository beside a plain clone, p50".to_owned(),
                bound: Bound::Below(1.0),
                measured: cloned.kept.p50() / cloned.plain.p50(),
                unit: "",
            },
            Aim {
                what: "Added to a request by the exit, p50".to_owned(),
                bound: Bound::Below(5.0),
                measured: asked.exit.p50() - asked.direct.p50(),
                unit: "ms",
            },
        ],
        tables: vec![clones_table(&cloned, &brought, megabytes), requests_table(&asked)],
        notes: vec![
            "A clone of ours ends with an archive that holds the repository and its files; git\'s ends with the files.".to_owned(),
            "The server starts a process for each request: most of each request\'s time is that.".to_owned(),
        ],
    })
}

struct World {
    store: Store,
    credentials: Credentials,
    server: Server,
    record: Record,
    workspace: protocol::id::WorkspaceId,
    guard: Arc<Guard>,
}

/// How long clones took.
struct Clones {
    plain: Samples,
    cold: Samples,
    kept: Samples,
}

/// How long requests took.
struct Requests {
    direct: Samples,
    exit: Samples,
}

impl World {
    async fn start(place: &Place, bytes: usize, seed: u64) -> anyhow::Result<Self> {
        let server = server::start(&place.join("host"), bytes, seed).await?;
        let store = Store::open(&place.join("data"), store::Options::default())?;
        let workspace = store.ensure_workspace().await?;
        let credentials = Credentials::new(store.clone(), Source::File(place.join("vault.key")));
        let now = store.now();
        let resource = Repository {
            id: store.ids().make(),
            url: format!("https://{}/{REPOSITORY}", server.address),
            mount_path: "/workspace/project".to_owned(),
            checkout: None,
            created_at: now,
            updated_at: now,
        };
        let id = resource.id.clone();
        let record = Record {
            resources: vec![Resource::GithubRepository(resource)],
            ..record(&store, agent("bench"))
        };
        let token = protocol::secret::Secret::new("a token that nobody asks for".replace(' ', "-"));
        let token = credentials.seal_token(&workspace, &record.id, &id, &token).await?;
        let thread_id = store.ids().make();
        let new = NewSession {
            workspace: workspace.clone(),
            record: record.clone(),
            thread_id,
            initial: Vec::new(),
        };
        store
            .create_session_with(new, store::Brought { tokens: vec![token], ..store::Brought::default() })
            .await?;
        let private: PrivateHosts = server.address.to_string().parse()?;
        Ok(Self { store, credentials, server, record, workspace, guard: Arc::new(Guard::new(private, [])) })
    }

    /// With a cache of its own.
    fn repositories(&self, folder: &Path) -> anyhow::Result<Repositories> {
        let hosts =
            self.server.address.to_string().parse().map_err(|error: String| anyhow::anyhow!(error))?;
        let settings = Settings {
            authorities: vec![self.server.authority.clone()],
            ..Settings::new(folder.to_owned(), hosts, Arc::clone(&self.guard))
        };
        Ok(Repositories::new(self.store.clone(), self.credentials.clone(), settings)?)
    }

    async fn prepared(
        &self,
        repositories: &Repositories,
    ) -> anyhow::Result<(Duration, repositories::Prepared)> {
        let asked = Instant::now();
        let prepared = repositories.prepare(&self.workspace, &self.record).await;
        let took = asked.elapsed();
        ensure!(prepared.errors.is_empty(), "{:?}", prepared.errors);
        Ok((took, prepared))
    }

    async fn clones(&self, place: &Place, count: usize) -> anyhow::Result<Clones> {
        let authority = place.join("authority.pem");
        std::fs::write(&authority, &self.server.authority)?;
        let (mut plain, mut cold, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let url = format!("https://{}/{REPOSITORY}.git", self.server.address);
        let usual = self.repositories(&place.join("kept"))?;
        self.prepared(&usual).await?;
        for number in 0..count {
            let (folder, authority, url) = (place.path().to_owned(), authority.clone(), url.clone());
            let asked = Instant::now();
            tokio::task::spawn_blocking(move || server::clone(&folder, &authority, &url)).await??;
            plain.push(asked.elapsed());
            std::fs::remove_dir_all(place.join("plain"))?;
            let folder = place.join(&format!("cold-{number}"));
            cold.push(self.prepared(&self.repositories(&folder)?).await?.0);
            std::fs::remove_dir_all(folder)?;
            kept.push(self.prepared(&usual).await?.0);
        }
        let of = |times: Vec<Duration>| times.into_iter().collect();
        Ok(Clones { plain: of(plain), cold: of(cold), kept: of(kept) })
    }

    /// From the archive to the files in a sandbox that lives.
    async fn sandboxes(&self, place: &Place, count: usize) -> anyhow::Result<Samples> {
        let hands = supervised(&place.join("hands"));
        let (_, prepared) = self.prepared(&self.repositories(&place.join("kept"))?).await?;
        let ready = prepared.trees.first().context("a tree")?;
        let tree = Tree { at: ready.at().to_owned(), archive: ready.archive().to_owned() };
        let equipment = Equipment { trees: vec![tree], ..Equipment::default() };
        let mut times = Vec::new();
        for number in 0..count {
            let id = sandbox_id(&format!("git-{number}"));
            hands.provision(&id, FENCE, &Resources::default()).await?;
            let asked = Instant::now();
            hands.equip(&id, FENCE, &equipment).await?;
            times.push(asked.elapsed());
            hands.destroy(&id).await?;
        }
        hands.end().await?;
        Ok(times.into_iter().collect())
    }

    async fn requests(&self, count: usize) -> anyhow::Result<Requests> {
        let authority = reqwest::Certificate::from_pem(self.server.authority.as_bytes())?;
        let client = egress::client(Arc::clone(&self.guard), |builder| builder.tls_certs_merge([authority]))?;
        let url: reqwest::Url =
            format!("https://{}/{REPOSITORY}.git/{REQUEST}", self.server.address).parse()?;
        let folder = tempfile::tempdir()?;
        let repositories = self.repositories(folder.path())?;
        let broker = Broker::new(self.credentials.clone()).serving(repositories);
        let edge = broker.edge(self.record.id.clone());
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let exit = listener.local_addr()?;
        let stop = CancellationToken::new();
        let proxy = Proxy::new(Arc::clone(&self.guard), Limits::default());
        let who = Who { sandbox: "bench".to_owned(), session: Some(self.record.id.to_string()) };
        let served = stop.clone();
        let serving =
            tokio::spawn(
                async move { proxy.serve(listener, who, Policy::NOTHING, Some(edge), served).await },
            );
        let target = format!("/git/{}/{REPOSITORY}/{REQUEST}", self.record.resources[0].id());
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for number in 0..=count {
            let asked = Instant::now();
            let answer =
                client.request(reqwest::Method::GET, url.clone())?.send().await?.error_for_status()?;
            let one = answer.bytes().await?;
            let took = asked.elapsed();
            let asked = Instant::now();
            let mut stream = TcpStream::connect(exit).await?;
            stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: {exit}\r\n\r\n").as_bytes()).await?;
            let mut other = Vec::new();
            stream.read_to_end(&mut other).await?;
            let took_through = asked.elapsed();
            ensure!(
                other.windows(20).any(|part| part == &one[one.len() - 20..]),
                "the same answer comes both ways"
            );
            // The first opens connections.
            if number > 0 {
                direct.push(took);
                through.push(took_through);
            }
        }
        stop.cancel();
        serving.await??;
        Ok(Requests { direct: direct.into_iter().collect(), exit: through.into_iter().collect() })
    }
}

fn clones_table(clones: &Clones, brought: &Samples, megabytes: usize) -> Table {
    let columns = [
        ("what", "what"),
        ("count", "count"),
        ("p50_ms", "p50 ms"),
        ("p99_ms", "p99 ms"),
        ("of_plain", ": plain, p50"),
    ];
    let mut table = Table::new("clones", format!("A repository of {megabytes} MB"), columns);
    let rows = [
        ("git clone, of the same server", &clones.plain),
        ("for a session, the first time", &clones.cold),
        ("for a session, kept from before", &clones.kept),
        ("from the archive into a sandbox", brought),
    ];
    for (what, times) in rows {
        let ratio = times.p50() / clones.plain.p50();
        table.row([what.into(), times.len().into(), times.p50().into(), times.p99().into(), ratio.into()]);
    }
    table
}

fn requests_table(requests: &Requests) -> Table {
    let columns = [("what", "what"), ("count", "count"), ("p50_ms", "p50 ms"), ("p99_ms", "p99 ms")];
    let mut table = Table::new("requests", "info/refs, which every fetch and push begins with", columns);
    let added = [requests.exit.p50() - requests.direct.p50(), requests.exit.p99() - requests.direct.p99()];
    for (what, times) in
        [("direct, on an open connection", &requests.direct), ("through the exit", &requests.exit)]
    {
        table.row([what.into(), times.len().into(), times.p50().into(), times.p99().into()]);
    }
    table.row(["added".into(), super::report::Cell::Nothing, added[0].into(), added[1].into()]);
    table
}
