//! The database's address, TLS, and a pool of connections. Every wait is bounded: a network that swallows packets must
//! not keep a brain waiting beyond its lease.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use futures_util::future::join_all;
use rustls::RootCertStore;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Config, Row, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

use crate::error::OpenError;
use crate::postgres::fault::Fault;

/// Connections of one process. The two lanes use one each; the rest is for reads.
const CONNECTIONS: usize = 12;
/// How long a connection may take to be made or to become free.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long an answer may take. Well below the length of a lease; no statement of ours takes a tenth of it.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a read waits for a database that is away, and how long between two tries.
const READ_PATIENCE: Duration = Duration::from_secs(3);
const READ_PAUSE: Duration = Duration::from_millis(100);
/// How long reading a whole log may take, for the operator's tools.
pub(crate) const LONG_ANSWER_MAX: Duration = Duration::from_secs(600);

/// A parameter and its type.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The database.
#[derive(Clone)]
pub(crate) struct Db {
    pool: Pool,
}

/// How to reach a database.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) config: Config,
    pub(crate) tls: MakeRustlsConnect,
}

impl Address {
    /// Reads an address such as `postgres://user:password@host:5432/name?sslmode=require`. Besides what the client
    /// library knows it takes `sslmode=verify-full` and `verify-ca`, which are what `require` means here, and
    /// `sslrootcert`, a file of certificates to trust instead of the system's.
    pub(crate) fn parse(text: &str) -> Result<Self, OpenError> {
        let wrong = |rule: String| OpenError::Address { rule };
        let mut url = Url::parse(text).map_err(|error| wrong(format!("is not an address: {error}")))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(wrong(format!("must begin with postgres://, not {}://", url.scheme())));
        }
        let mut root_file = None;
        let mut verifies = false;
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .filter_map(|(name, value)| match &*name {
                "sslrootcert" => {
                    root_file = Some(value.into_owned());
                    None
                }
                "sslmode" if value.starts_with("verify-") => {
                    verifies = true;
                    None
                }
                _ => Some((name.into_owned(), value.into_owned())),
            })
            .collect();
        url.set_query(None);
        if !pairs.is_empty() {
            url.query_pairs_mut().extend_pairs(pairs);
        }
        let mut config: Config =
            url.as_str().parse().map_err(|error| wrong(format!("cannot be used: {error}")))?;
        if verifies {
            config.ssl_mode(SslMode::Require);
        }
        config.application_name("posthouse");
        config.connect_timeout(CONNECT_MAX);
        config.tcp_user_timeout(2 * ANSWER_MAX);
        config.keepalives_idle(Duration::from_secs(30));
        Ok(Self { config, tls: tls(root_file.as_deref())? })
    }
}

fn tls(root_file: Option<&str>) -> Result<MakeRustlsConnect, OpenError> {
    let mut roots = RootCertStore::empty();
    match root_file {
        Some(path) => {
            let wrong = |error: String| OpenError::Address { rule: format!("sslrootcert {path}: {error}") };
            let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
            let certificates = certificates(&mut BufReader::new(file)).map_err(wrong)?;
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(wrong("holds no certificate".to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the usual versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(
    file: &mut impl std::io::BufRead,
) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::pem_reader_iter(file)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("cannot be read: {error:?}"))
}

impl Db {
    /// A pool for this address. Connects when it is first asked.
    pub(crate) fn new(address: &Address) -> Self {
        // Nothing of ours hangs on a connection, so none needs cleaning.
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(address.config.clone(), address.tls.clone(), manager_config);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_MAX))
            .create_timeout(Some(CONNECT_MAX))
            .recycle_timeout(Some(CONNECT_MAX))
            .build()
            .expect("a runtime is given");
        Self { pool }
    }

    pub(crate) async fn get(&self) -> Result<Object, Fault> {
        Ok(self.pool.get().await?)
    }

    /// Asks one statement, which is a transaction by itself. It is not prepared by name: a pooler that hands connections
    /// on between transactions would bring the names of two processes into each other's way.
    pub(crate) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Fault> {
        match self.write(sql, params).await {
            // An id with a zero byte, which a client may send and no text of PostgreSQL can hold: nothing has it.
            Err(Fault::Sql(error)) if error.code() == Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE) => {
                Ok(Vec::new())
            }
            asked => asked,
        }
    }

    /// The same for what the lanes write, where every text is ours.
    pub(crate) async fn write(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Fault> {
        let client = self.get().await?;
        let answer = timeout(ANSWER_MAX, client.query_typed(sql, params)).await;
        settle(client, answer)
    }

    /// Asks for at most one row.
    pub(crate) async fn query_opt(&self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, Fault> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Asks several statements of one moment, in one round trip.
    pub(crate) async fn snapshot(&self, asked: &[(&str, &[Param<'_>])]) -> Result<Vec<Vec<Row>>, Fault> {
        self.snapshot_within(ANSWER_MAX, asked).await
    }

    /// The same, for what may take long.
    pub(crate) async fn snapshot_within(
        &self,
        at_most: Duration,
        asked: &[(&str, &[Param<'_>])],
    ) -> Result<Vec<Vec<Row>>, Fault> {
        let client = self.get().await?;
        // Polled in this order, so sent in this order, all before the first answer: even if nobody waits for the answers
        // the transaction ends.
        let all = async {
            let begin = client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
            let queries = join_all(asked.iter().map(|(sql, params)| client.query_typed(sql, params)));
            let commit = client.batch_execute("COMMIT");
            let (begun, rows, committed) = tokio::join!(biased; begin, queries, commit);
            begun?;
            let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
            committed?;
            Ok(rows)
        };
        let answer = timeout(at_most, all).await;
        match settle(client, answer) {
            // As for one statement.
            Err(Fault::Sql(error)) if error.code() == Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE) => {
                Ok(asked.iter().map(|_| Vec::new()).collect())
            }
            asked => asked,
        }
    }

    /// Runs several statements in one transaction, in one round trip. Each sees what was committed when its turn came, so
    /// that what one has locked the next finds as it is.
    pub(crate) async fn together(&self, asked: &[(&str, &[Param<'_>])]) -> Result<Vec<Vec<Row>>, Fault> {
        let client = self.get().await?;
        // As for a snapshot: all is sent before the first answer, so the transaction ends whoever waits for it.
        let all = async {
            let begin = client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED");
            let queries = join_all(asked.iter().map(|(sql, params)| client.query_typed(sql, params)));
            let commit = client.batch_execute("COMMIT");
            let (begun, rows, committed) = tokio::join!(biased; begin, queries, commit);
            begun?;
            let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
            committed?;
            Ok(rows)
        };
        let answer = timeout(ANSWER_MAX, all).await;
        match settle(client, answer) {
            // As for one statement.
            Err(Fault::Sql(error)) if error.code() == Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE) => {
                Ok(asked.iter().map(|_| Vec::new()).collect())
            }
            asked => asked,
        }
    }

    /// Sends statements as one message: the server runs them in one transaction, whatever becomes of this process.
    pub(crate) async fn simple(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Fault> {
        let client = self.get().await?;
        let answer = timeout(ANSWER_MAX, client.simple_query(sql)).await;
        settle(client, answer)
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }
}

/// Reads again what could not be read because the database was away for a moment.
pub(crate) async fn read<T, Reading>(reads: impl Fn() -> Reading) -> Result<T, Fault>
where
    Reading: Future<Output = Result<T, Fault>>,
{
    let began = Instant::now();
    loop {
        match reads().await {
            Err(fault) if fault.is_away() && began.elapsed() < READ_PATIENCE => sleep(READ_PAUSE).await,
            read => return read,
        }
    }
}

/// A text that PostgreSQL can hold: without zero bytes.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{2400}")
}

/// A connection on which an answer is late is not used again.
fn settle<T>(
    client: Object,
    answer: Result<Result<T, tokio_postgres::Error>, tokio::time::error::Elapsed>,
) -> Result<T, Fault> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            drop(Object::take(client));
            Err(Fault::Late)
        }
    }
}
