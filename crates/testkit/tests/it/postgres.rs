use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::postgres::{Cluster, Durability, PgBouncer, Settings, Stop};

/// Set for a copy of this program that is to start a cluster and be killed.
const VICTIM: &str = "TESTKIT_POSTGRES_VICTIM";

fn own() -> Cluster {
    Cluster::new(Settings::default()).expect("it runs")
}

fn ask(cluster: &Cluster, url: &str, statements: &str) -> String {
    cluster.psql(url, statements).expect("the server answers")
}

#[test]
fn each_database_of_the_shared_cluster_is_empty_and_apart() {
    let cluster = Cluster::shared();
    let (one, other) = (cluster.database(), cluster.database());
    assert_eq!(ask(cluster, &one, "create table t (n int); insert into t values (7); select n from t"), "7");
    let absent = cluster.psql(&other, "select n from t").expect_err("it is another database");
    assert!(absent.to_string().contains("does not exist"), "{absent}");
}

#[test]
fn a_unix_socket_leads_to_the_same_database() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    ask(cluster, &url, "create table t (n int)");
    let name = url.rsplit_once('/').expect("a path").1;
    let folder = cluster.socket_folder().display();
    let socket = format!("host={folder} port={} user=posthouse dbname={name}", cluster.port());
    assert_eq!(ask(cluster, &socket, "select count(*) from t"), "0");
}

#[test]
fn what_was_committed_is_there_after_a_stop_of_either_kind() {
    let cluster = own();
    let url = cluster.database();
    ask(&cluster, &url, "create table t (n int)");
    for (n, how) in [(1, Stop::Immediate), (2, Stop::Fast)] {
        ask(&cluster, &url, &format!("insert into t values ({n})"));
        cluster.stop(how).expect("it stops");
        assert!(cluster.psql(&url, "select 1").is_err(), "nobody listens");
        cluster.start().expect("it starts again");
        assert_eq!(ask(&cluster, &url, "select count(*) from t"), n.to_string());
    }
}

#[test]
fn settings_have_effect_at_the_next_start() {
    let mut cluster = own();
    let url = cluster.database();
    assert_eq!(ask(&cluster, &url, "show fsync"), "off");
    cluster.settings = Settings {
        durability: Durability::Machine,
        parameters: vec![("work_mem".to_owned(), "3MB".to_owned())],
        ..Settings::default()
    };
    cluster.restart(Stop::Fast).expect("it starts again");
    assert_eq!(ask(&cluster, &url, "show fsync"), "on");
    assert_eq!(ask(&cluster, &url, "show work_mem"), "3MB");
}

#[test]
fn a_dropped_cluster_leaves_nothing() {
    let cluster = own();
    let folder = cluster.socket_folder().to_owned();
    let port = cluster.port();
    assert!(folder.exists());
    drop(cluster);
    assert!(!folder.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_killed_test_process_leaves_nothing() {
    let program = std::env::current_exe().expect("it has a path");
    let mut victim = Command::new(program)
        .args(["--exact", "postgres::a_victim_starts_a_cluster_and_waits_to_be_killed", "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("victim: ")?.1.to_owned()));
    let said = said.expect("the victim has a cluster");
    let (port, folder) = said.split_once(' ').expect("two words");
    let mut connection = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the server listens");
    victim.kill().expect("it is a child of ours");
    victim.wait().expect("it is a child of ours");
    // The server's end closes the connection, with whatever last words.
    let _ = connection.read_to_end(&mut Vec::new());
    until_gone(&PathBuf::from(folder));
}

/// Not a test of its own: what [`a_killed_test_process_leaves_nothing`] kills.
#[test]
fn a_victim_starts_a_cluster_and_waits_to_be_killed() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let cluster = Cluster::shared();
    println!("victim: {} {}", cluster.port(), cluster.socket_folder().display());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// The shell that cleans up is nobody's child, so nothing tells when it is done.
fn until_gone(folder: &Path) {
    while folder.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn clients_of_a_pooler_share_a_connection_between_transactions() {
    let cluster = Cluster::shared();
    let pooler = PgBouncer::new(cluster, 1).expect("it runs");
    let url = pooler.url(&cluster.database());
    let first = ask(cluster, &url, "select pg_backend_pid()");
    assert_eq!(ask(cluster, &url, "select pg_backend_pid()"), first);
}
