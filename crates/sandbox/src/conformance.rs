//! The suite that every [`Provider`] passes, the fakes included.
//!
//! It needs little of the hands behind the provider: a tool `bash` that understands `echo`, `cat`, redirection into a file of the working
//! folder and `sleep`, in sandboxes that share nothing. Each part panics with a sentence when the contract is broken.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tools::wire::{Content, Output};

use crate::packages::hex;
use crate::provider::{
    Call, Collected, EXIT_PORT, Equipment, Error, Exit, ExitNews, Exits, Network, Pool, Provider, Resources,
    Restore, SandboxId, Tree,
};

/// Runs every part. `names` makes the ids of this run different from those of any other.
pub async fn suite(provider: &dyn Provider, names: &str) {
    let id =
        |part: &str| SandboxId::parse(&format!("{names}-{part}")).expect("the caller's names make good ids");
    provisioning_twice_is_provisioning_once(provider, &id("once")).await;
    what_was_never_made_is_gone(provider, &id("never")).await;
    a_call_runs_once_however_often_it_is_asked_for(provider, &id("call")).await;
    calls_of_one_id_at_the_same_time_share_one_run(provider, &id("share")).await;
    a_stale_lease_is_fenced_off(provider, &id("fence")).await;
    a_running_call_can_be_cancelled(provider, &id("cancel")).await;
    what_is_destroyed_stays_destroyed(provider, &id("destroy")).await;
    sandboxes_share_nothing(provider, &id("one"), &id("other")).await;
    the_list_shows_what_lives(provider, &id("list")).await;
    outputs_are_collected_into_a_folder(provider, &id("outputs")).await;
    what_is_kept_ready_cannot_be_told_from_a_new_one(provider, &id("ready-one"), &id("ready-two")).await;
}

/// Runs the part about snapshots, for hands that can be saved.
pub async fn snapshots_suite(provider: &dyn Provider, names: &str) {
    let id =
        |part: &str| SandboxId::parse(&format!("{names}-{part}")).expect("the caller's names make good ids");
    let [saved, restored, misfit] = ["saved", "restored", "misfit"].map(id);
    what_was_saved_is_there_again_on_the_same_base_alone(provider, &saved, &restored, &misfit).await;
    a_sandbox_outlives_what_goes_wrong_while_it_is_saved(provider, &id("unsaved")).await;
    nothing_is_made_of_a_broken_snapshot(provider, &id("broken"), &id("unmade"), &id("missing")).await;
}

/// Runs the part about what a session brings, for hands with real files. `authority` is a certificate in PEM.
pub async fn equipment_suite(provider: &dyn Provider, names: &str, authority: &str) {
    let id = SandboxId::parse(&format!("{names}-equipped")).expect("the caller's names make good ids");
    make(provider, &id).await;
    let variables = [("SOME_TOKEN", "a b=c"), ("LANG", "C")];
    let equipment = Equipment {
        variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        trusted: Some(authority.to_owned()),
        trees: Vec::new(),
    };
    for _ in 0..2 {
        provider.equip(&id, 1, &equipment).await.expect("a session can bring something, again and again");
    }
    let fenced = provider.equip(&id, 0, &equipment).await;
    assert!(matches!(fenced, Err(Error::Fenced { .. })), "{fenced:?}");
    let seen = bash(provider, &id, "variables", r#"echo "$SOME_TOKEN $LANG""#).await;
    assert_eq!(seen, "a b=c C");
    // Every program finds the same list, in which the session's authority stands once, at the end.
    let look = r#"cmp "$SSL_CERT_FILE" "$GIT_SSL_CAINFO" && cmp "$SSL_CERT_FILE" "$NODE_EXTRA_CA_CERTS" && tail -n 1 "$CURL_CA_BUNDLE""#;
    assert_eq!(bash(provider, &id, "trusted", look).await, "-----END CERTIFICATE-----");
    let second = authority.lines().nth(1).expect("a certificate has several lines");
    let count = bash(provider, &id, "once", &format!("grep -cF -- '{second}' \"$SSL_CERT_FILE\"")).await;
    assert_eq!(count, "1");
    destroy(provider, &id).await;
}

/// Runs the part about the trees that a session brings, for hands with real files. `archive` is one of a tree whose file
/// `run` prints `ran`.
pub async fn trees_suite(provider: &dyn Provider, names: &str, archive: &Path) {
    let id = SandboxId::parse(&format!("{names}-trees")).expect("the caller's names make good ids");
    make(provider, &id).await;
    let at = "/workspace/some/tree".to_owned();
    let tree = Tree { at, archive: archive.to_owned() };
    let equipment = Equipment { trees: vec![tree.clone()], ..Equipment::default() };
    for _ in 0..2 {
        provider.equip(&id, 1, &equipment).await.expect("a session can bring a tree, again and again");
    }
    let look = "./some/tree/run; ls -A some; test -O some/tree/run && echo mine";
    assert_eq!(bash(provider, &id, "tree", look).await, "ran\ntree\nmine");
    let missing = Tree { archive: archive.with_file_name("none"), ..tree };
    let refused = provider.equip(&id, 1, &Equipment { trees: vec![missing], ..Equipment::default() }).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    destroy(provider, &id).await;
}

/// Runs the part that needs a shell which can open connections (`/dev/tcp`), which the fakes have not.
pub async fn exits_suite(provider: &dyn Provider, names: &str) {
    let id = SandboxId::parse(&format!("{names}-exit")).expect("the caller's names make good ids");
    let mut exits = provider.exits();
    let network = Network("what may be reached".to_owned());
    let resources = Resources { network: Some(network.clone()), ..Resources::default() };
    provider.provision(&id, 1, &resources).await.expect("a sandbox can be made");
    // It connects before anybody serves: that waits, and is not refused.
    let talk = format!("exec 5<>/dev/tcp/127.0.0.1/{EXIT_PORT} && echo hello >&5 && cat <&5");
    let talking = bash(provider, &id, "talk", &talk);
    let serving = async {
        let Exit { sandbox, network: given, listener } = opened(&mut exits).await;
        assert_eq!((&sandbox, &given), (&id, &network));
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket that does not block");
        let (mut stream, _) = listener.accept().await.expect("somebody connects");
        let mut line = [0; 6];
        stream.read_exact(&mut line).await.expect("it says something");
        stream.write_all(b"you said ").await.expect("it listens");
        stream.write_all(&line).await.expect("it listens");
    };
    let (heard, ()) = tokio::join!(talking, serving);
    assert_eq!(heard, "you said hello");

    // Whoever comes later gets it, too; one without a network has none, and nothing listens there.
    let mut again = provider.exits();
    assert_eq!(opened(&mut again).await.sandbox, id);
    let alone = SandboxId::parse(&format!("{names}-no-exit")).expect("the caller's names make good ids");
    make(provider, &alone).await;
    let refused = bash(provider, &alone, "talk", &format!("{{ {talk}; }} 2>/dev/null || echo refused")).await;
    assert_eq!(refused, "refused");
    destroy(provider, &id).await;
    for exits in [&mut exits, &mut again] {
        let ended = loop {
            match exits.next().await {
                // One may come again.
                Some(ExitNews::Opened(exit)) => assert_eq!(exit.sandbox, id),
                other => break other,
            }
        };
        assert!(matches!(&ended, Some(ExitNews::Ended(sandbox)) if *sandbox == id), "{ended:?}");
    }
    destroy(provider, &alone).await;
}

/// The next exit.
async fn opened(exits: &mut Exits) -> Exit {
    match exits.next().await {
        Some(ExitNews::Opened(exit)) => exit,
        other => panic!("an exit comes, not {other:?}"),
    }
}

async fn provisioning_twice_is_provisioning_once(provider: &dyn Provider, id: &SandboxId) {
    make(provider, id).await;
    bash(provider, id, "a", "echo kept > file").await;
    make(provider, id).await;
    assert_eq!(
        bash(provider, id, "b", "cat file").await,
        "kept",
        "a second provision must keep the workspace"
    );
    let resources = Resources::default();
    let (one, two) =
        tokio::join!(provider.provision(id, 1, &resources), provider.provision(id, 1, &resources));
    assert!(one.is_ok() && two.is_ok(), "two at once must both succeed");
    destroy(provider, id).await;
}

async fn what_was_never_made_is_gone(provider: &dyn Provider, id: &SandboxId) {
    let executed = provider.execute(call(id, "a", 1, "echo hi")).await;
    assert!(matches!(executed, Err(Error::Gone { .. })), "{executed:?}");
    let cancelled = provider.cancel(id, 1, "a").await;
    assert!(matches!(cancelled, Err(Error::Gone { .. })), "{cancelled:?}");
    let touched = provider.touch(id, 1).await;
    assert!(matches!(touched, Err(Error::Gone { .. })), "touching makes nothing: {touched:?}");
    destroy(provider, id).await;
}

async fn a_call_runs_once_however_often_it_is_asked_for(provider: &dyn Provider, id: &SandboxId) {
    make(provider, id).await;
    let first = provider.execute(call(id, "a", 1, "echo ran >> runs; echo hello")).await.expect("it runs");
    assert_eq!(text(&first), "hello");
    let again =
        provider.execute(call(id, "a", 1, "echo ran >> runs; echo hello")).await.expect("it is remembered");
    assert_eq!(first, again, "asking again returns the kept output");
    assert_eq!(bash(provider, id, "b", "cat runs").await, "ran", "it ran once");
    destroy(provider, id).await;
}

async fn calls_of_one_id_at_the_same_time_share_one_run(provider: &dyn Provider, id: &SandboxId) {
    make(provider, id).await;
    let ask = || provider.execute(call(id, "a", 1, "sleep 0.3; echo ran >> runs; cat runs"));
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    for output in [one, two, three] {
        assert_eq!(text(&output.expect("each gets the output")), "ran");
    }
    // Whoever stops waiting does not stop the call.
    let short = Duration::from_millis(100);
    let dropped =
        tokio::time::timeout(short, provider.execute(call(id, "b", 1, "sleep 0.5; echo survived"))).await;
    assert!(dropped.is_err(), "it was still running");
    assert_eq!(bash(provider, id, "b", "sleep 0.5; echo survived").await, "survived");
    destroy(provider, id).await;
}

async fn a_stale_lease_is_fenced_off(provider: &dyn Provider, id: &SandboxId) {
    make(provider, id).await;
    provider.execute(call(id, "a", 7, "echo hi")).await.expect("a newer lease is let through");
    let executed = provider.execute(call(id, "b", 6, "echo stale >> runs")).await;
    assert!(matches!(executed, Err(Error::Fenced { seen: 7 })), "{executed:?}");
    let provisioned = provider.provision(id, 6, &Resources::default()).await;
    assert!(matches!(provisioned, Err(Error::Fenced { seen: 7 })), "{provisioned:?}");
    let cancelled = provider.cancel(id, 6, "a").await;
    assert!(matches!(cancelled, Err(Error::Fenced { seen: 7 })), "{cancelled:?}");
    let touched = provider.touch(id, 6).await;
    assert!(matches!(touched, Err(Error::Fenced { seen: 7 })), "{touched:?}");
    provider.touch(id, 7).await.expect("it is there");
    provider.provision(id, 8, &Resources::default()).await.expect("provisioning raises the fence");
    let executed = provider.execute(call(id, "c", 7, "echo stale >> runs")).await;
    assert!(matches!(executed, Err(Error::Fenced { seen: 8 })), "{executed:?}");
    let runs = provider.execute(call(id, "d", 8, "cat runs; echo looked")).await.expect("it looks");
    assert!(!text(&runs).contains("stale"), "a fenced call must not run");
    destroy(provider, id).await;
}

async fn a_running_call_can_be_cancelled(provider: &dyn Provider, id: &SandboxId) {
    make(provider, id).await;
    let cancel = async {
        // The call may not have arrived yet; then nothing of that id is known and it is asked again.
        while !provider.cancel(id, 1, "a").await.expect("cancelling works") {
            tokio::task::yield_now().await;
        }
    };
    let (output, ()) = tokio::join!(provider.execute(call(id, "a", 1, "sleep 600")), cancel);
    assert!(
        output.expect("a cancelled call has an output").is_error,
        "which says that it did not end by itself"
    );
    assert!(!provider.cancel(id, 1, "unheard of").await.expect("cancelling works"));
    assert_eq!(bash(provider, id, "b", "echo still here").await, "still here");
    destroy(provider, id).await;
}

async fn what_is_destroyed_stays_destroyed(provider: &dyn Provider, id: &SandboxId) {
    make(provider, id).await;
    bash(provider, id, "a", "echo warm").await;
    let (running, destroyed) =
        tokio::join!(provider.execute(call(id, "b", 1, "sleep 600")), provider.destroy(id));
    assert!(matches!(running, Err(Error::Gone { .. })), "{running:?}");
    destroyed.expect("destroying works");
    let executed = provider.execute(call(id, "c", 1, "echo hi")).await;
    assert!(matches!(executed, Err(Error::Gone { .. })), "{executed:?}");
    let provisioned = provider.provision(id, 9, &Resources::default()).await;
    assert!(matches!(provisioned, Err(Error::Gone { .. })), "an id never comes back: {provisioned:?}");
    let (one, two) = tokio::join!(provider.destroy(id), provider.destroy(id));
    assert!(one.is_ok() && two.is_ok(), "destroying is idempotent");
}

async fn sandboxes_share_nothing(provider: &dyn Provider, one: &SandboxId, other: &SandboxId) {
    make(provider, one).await;
    make(provider, other).await;
    bash(provider, one, "a", "echo mine > file").await;
    assert_ne!(bash(provider, other, "a", "cat file").await, "mine");
    destroy(provider, one).await;
    assert_eq!(bash(provider, other, "b", "echo unharmed").await, "unharmed");
    destroy(provider, other).await;
}

async fn the_list_shows_what_lives(provider: &dyn Provider, id: &SandboxId) {
    let listed = async || {
        let list = provider.list().await.expect("listing works");
        list.into_iter().find(|info| info.id == *id)
    };
    assert_eq!(listed().await, None);
    provider.provision(id, 3, &Resources::default()).await.expect("it is made");
    assert_eq!(listed().await.map(|info| info.fence), Some(3));
    destroy(provider, id).await;
    assert_eq!(listed().await, None);
}

async fn outputs_are_collected_into_a_folder(provider: &dyn Provider, id: &SandboxId) {
    let unique = format!("posthouse-conformance-{}-{id}", std::process::id());
    let into = std::env::temp_dir().join(unique);
    make(provider, id).await;
    assert_eq!(provider.collect_outputs(id, &into).await.expect("collecting works"), []);
    assert!(!into.exists(), "nothing to copy, no folder");
    bash(provider, id, "a", "echo done > /mnt/session/outputs/report.txt").await;
    let collected = provider.collect_outputs(id, &into).await.expect("collecting works");
    let expected = Collected { path: Path::new("report.txt").to_owned(), size_bytes: 5 };
    assert_eq!(collected, [expected]);
    assert_eq!(std::fs::read_to_string(into.join("report.txt")).expect("the file is there"), "done\n");
    std::fs::remove_dir_all(&into).expect("the folder is ours");
    destroy(provider, id).await;
}

async fn what_is_kept_ready_cannot_be_told_from_a_new_one(
    provider: &dyn Provider,
    one: &SandboxId,
    two: &SandboxId,
) {
    let pool = Pool { resources: Resources::default(), count: 1 };
    let listed = async || provider.list().await.expect("listing works").len();
    let before = listed().await;
    for _ in 0..2 {
        provider.keep_ready(std::slice::from_ref(&pool)).await.expect("a wish is heard");
    }
    // Whether anything is ready by now is the provider's affair.
    assert_eq!(listed().await, before, "what nobody has provisioned is not listed");
    make(provider, one).await;
    bash(provider, one, "a", "echo mine > file").await;
    make(provider, two).await;
    assert_ne!(bash(provider, two, "a", "cat file").await, "mine", "each is handed out once");
    assert_eq!(listed().await, before + 2);
    let executed = provider.execute(call(two, "b", 0, "echo hi")).await;
    assert!(matches!(executed, Err(Error::Fenced { seen: 1 })), "it has its holder's fence: {executed:?}");
    destroy(provider, one).await;
    destroy(provider, two).await;
    let provisioned = provider.provision(one, 9, &Resources::default()).await;
    assert!(matches!(provisioned, Err(Error::Gone { .. })), "an id never comes back: {provisioned:?}");
    provider.keep_ready(&[]).await.expect("a wish is taken back");
    assert_eq!(listed().await, before);
}

/// A new folder for the snapshots of one part.
fn snapshots(id: &SandboxId) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("posthouse-conformance-{}-{id}", std::process::id()));
    std::fs::create_dir(&folder).expect("the folder can be made");
    folder
}

async fn what_was_saved_is_there_again_on_the_same_base_alone(
    provider: &dyn Provider,
    id: &SandboxId,
    other: &SandboxId,
    misfit: &SandboxId,
) {
    let folder = snapshots(id);
    let file = folder.join("snapshot");
    make(provider, id).await;
    bash(provider, id, "a", "echo kept > file").await;
    let saved = provider.save(id, 1, &file).await.expect("it can be saved");
    let bytes = std::fs::read(&file).expect("the file is there");
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    assert_eq!((bytes.len() as u64, hex(digest.as_ref())), (saved.written.size_bytes, saved.written.sha256));
    // Whatever it does after that is not saved, but it does it.
    assert_eq!(bash(provider, id, "b", "cat file; echo later > file").await, "kept");
    let restore = Restore { file: file.clone(), base: saved.base.clone() };
    let resources = Resources { restore: Some(restore), ..Resources::default() };
    provider.provision(other, 1, &resources).await.expect("it can be restored");
    assert_eq!(bash(provider, other, "a", "cat file").await, "kept", "and no call of the old one is known");
    assert!(file.exists(), "a snapshot may be restored more than once");
    let elsewhere = Restore { file: file.clone(), base: "image of another kind".to_owned() };
    let resources = Resources { restore: Some(elsewhere), ..Resources::default() };
    let refused = provider.provision(misfit, 1, &resources).await;
    assert!(matches!(refused, Err(Error::Unrestorable { .. })), "{refused:?}");
    destroy(provider, id).await;
    destroy(provider, other).await;
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

async fn a_sandbox_outlives_what_goes_wrong_while_it_is_saved(provider: &dyn Provider, id: &SandboxId) {
    let folder = snapshots(id);
    let file = folder.join("snapshot");
    let unknown = provider.save(id, 1, &file).await;
    assert!(matches!(unknown, Err(Error::Gone { .. })), "{unknown:?}");
    provider.provision(id, 5, &Resources::default()).await.expect("it is made");
    let stale = provider.save(id, 4, &file).await;
    assert!(matches!(stale, Err(Error::Fenced { seen: 5 })), "{stale:?}");
    let nowhere = provider.save(id, 5, &folder.join("missing/snapshot")).await;
    assert!(nowhere.is_err(), "{nowhere:?}");
    std::fs::write(&file, "somebody's").expect("it can be written");
    let taken = provider.save(id, 5, &file).await;
    assert!(taken.is_err(), "{taken:?}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "somebody's");
    std::fs::remove_file(&file).expect("it is ours");
    let save_while_it_runs = async {
        loop {
            match provider.save(id, 5, &file).await {
                Err(Error::Busy { .. }) => break,
                // The call may not have arrived yet.
                Ok(_) => std::fs::remove_file(&file).expect("it is ours"),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!file.exists(), "no file is left");
        provider.cancel(id, 5, "running").await.expect("cancelling works");
    };
    let running = provider.execute(call(id, "running", 5, "sleep 600"));
    let (output, ()) = tokio::join!(running, save_while_it_runs);
    assert!(output.is_ok(), "{output:?}");
    let output = provider.execute(call(id, "after", 5, "echo unharmed")).await.expect("it goes on");
    assert_eq!(text(&output), "unharmed");
    destroy(provider, id).await;
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

async fn nothing_is_made_of_a_broken_snapshot(
    provider: &dyn Provider,
    id: &SandboxId,
    unmade: &SandboxId,
    missing: &SandboxId,
) {
    let folder = snapshots(id);
    let file = folder.join("snapshot");
    make(provider, id).await;
    bash(provider, id, "a", "echo kept > file").await;
    let saved = provider.save(id, 1, &file).await.expect("it can be saved");
    let whole = std::fs::read(&file).expect("it is there");
    std::fs::write(&file, &whole[..whole.len() - 1]).expect("it is ours");
    for (id, file) in [(unmade, file), (missing, folder.join("nothing"))] {
        let restore = Restore { file, base: saved.base.clone() };
        let resources = Resources { restore: Some(restore), ..Resources::default() };
        let refused = provider.provision(id, 1, &resources).await;
        assert!(matches!(refused, Err(Error::Unrestorable { .. })), "{refused:?}");
        let executed = provider.execute(call(id, "a", 1, "echo hi")).await;
        assert!(matches!(executed, Err(Error::Gone { .. })), "{executed:?}");
    }
    destroy(provider, id).await;
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

async fn make(provider: &dyn Provider, id: &SandboxId) {
    provider.provision(id, 1, &Resources::default()).await.expect("a sandbox can be made");
}

async fn destroy(provider: &dyn Provider, id: &SandboxId) {
    provider.destroy(id).await.expect("a sandbox can be destroyed");
}

async fn bash(provider: &dyn Provider, id: &SandboxId, call_id: &str, command: &str) -> String {
    text(&provider.execute(call(id, call_id, 1, command)).await.expect("the command runs"))
}

fn call(id: &SandboxId, call_id: &str, fence: u64, command: &str) -> Call {
    Call {
        sandbox: id.clone(),
        call_id: call_id.to_owned(),
        fence,
        name: "bash".to_owned(),
        input: json!({"command": command}),
        timeout: Duration::from_secs(60),
    }
}

fn text(output: &Output) -> String {
    let texts = output.content.iter().map(|block| match block {
        Content::Text { text } => text.as_str(),
        Content::Image { .. } | Content::Document { .. } => "",
    });
    texts.collect::<String>().trim_end().to_owned()
}
