//! Blobs in a folder, and in a bucket.

mod s3;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use blobs::{Blobs, Error, Fetched};

async fn contract(blobs: &Blobs, folder: &Path) {
    let (file, into) = (folder.join("file"), folder.join("into"));
    // More than one part of a bucket's upload, and not a round number.
    let bytes: Vec<u8> =
        (0..20_000_003_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[2]).collect();
    fs::write(&file, &bytes).expect("written");
    blobs.put("snapshots/a/1", &file).await.expect("put");
    let fetched = blobs.get("snapshots/a/1", &into).await.expect("there");
    let sha256 = "4b8a998e3b45b46759fad69f209a230979b01393419a75a7459bf9914e61af36".to_owned();
    assert_eq!(fetched, Fetched { size_bytes: bytes.len() as u64, sha256 });
    assert!(fs::read(&into).expect("there") == bytes, "other bytes came back");
    let taken = blobs.get("snapshots/a/1", &into).await;
    assert!(matches!(taken, Err(Error::File(_))), "a file that is there is not touched: {taken:?}");

    fs::write(&file, "small").expect("written");
    blobs.put("snapshots/a/1", &file).await.expect("replaced");
    blobs.put("snapshots/b/1", &file).await.expect("put");
    blobs.put("other/c", &file).await.expect("put");
    let mut listed: Vec<_> = blobs
        .list("snapshots", std::time::UNIX_EPOCH)
        .await
        .expect("lists")
        .into_iter()
        .map(|blob| (blob.key, blob.size_bytes))
        .collect();
    listed.sort();
    assert_eq!(listed, [("snapshots/a/1".to_owned(), 5), ("snapshots/b/1".to_owned(), 5)]);

    blobs.delete("snapshots/a/1").await.expect("deleted");
    blobs.delete("snapshots/a/1").await.expect("as good as deleted");
    let gone = blobs.get("snapshots/a/1", &folder.join("gone")).await;
    assert!(matches!(gone, Err(Error::Missing { .. })), "{gone:?}");
    assert!(!folder.join("gone").exists());
    for key in ["../escaped", "/absolute", "a//b", "", ".hidden", "a/../b"] {
        assert!(blobs.put(key, &file).await.is_err(), "{key}");
        assert!(blobs.get(key, &folder.join("gone")).await.is_err(), "{key}");
    }
}

#[tokio::test]
async fn blobs_in_a_folder_keep_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("deep/blobs");
    let blobs = Blobs::at(place.to_str().expect("text"), []).expect("opens");
    contract(&blobs, folder.path()).await;
    // What was put does not change with the file that it was put from.
    let file = folder.path().join("file");
    blobs.put("snapshots/x", &file).await.expect("put");
    fs::remove_file(&file).expect("ours");
    assert_eq!(blobs.get("snapshots/x", &folder.path().join("x")).await.expect("there").size_bytes, 5);
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(place).expect("there").mode() & 0o777, 0o700);
}

#[tokio::test]
async fn blobs_in_a_bucket_keep_the_contract() {
    let server = match s3::Server::start() {
        Ok(server) => server,
        Err(why) => {
            // Past the test's own output, which is shown of failures alone.
            let _ = writeln!(std::io::stderr(), "LEFT OUT: blobs_in_a_bucket_keep_the_contract: {why}");
            return;
        }
    };
    let variables = [
        ("AWS_ENDPOINT_URL", server.url.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let blobs = Blobs::at(&format!("s3://{}/some/prefix", s3::BUCKET), variables).expect("opens");
    let folder = tempfile::tempdir().expect("a folder");
    contract(&blobs, folder.path()).await;
}

#[test]
fn an_address_that_is_neither_a_folder_nor_a_bucket_is_refused() {
    let refused = Blobs::at("gs://bucket/x", []).err().expect("refused").to_string();
    assert!(refused.contains("`gs` is neither a folder nor `s3`"), "{refused}");
}
