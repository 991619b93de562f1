//! `/v1/models`.

use reqwest::Method;
use serde_json::json;

use crate::server::{KEY, Server, ids, send};

#[tokio::test]
async fn models_are_listed_newest_first_without_a_beta_header() {
    let server = Server::start().await;
    let page = send(server.bare(Method::GET, "/v1/models").header("x-api-key", KEY)).await.ok();
    assert_eq!(ids(&page), ["m-3", "m-2", "m-1"], "retired models are left out");
    assert_eq!(
        (&page["has_more"], &page["first_id"], &page["last_id"]),
        (&json!(false), &json!("m-3"), &json!("m-1"))
    );
}

#[tokio::test]
async fn models_are_paged_both_ways_by_id() {
    let server = Server::start().await;
    let page = server.get("/v1/models?limit=2").await.ok();
    assert_eq!(
        (ids(&page).as_slice(), &page["has_more"]),
        (["m-3".to_owned(), "m-2".to_owned()].as_slice(), &json!(true))
    );
    let page = server.get("/v1/models?limit=2&after_id=m-2").await.ok();
    assert_eq!((ids(&page).as_slice(), &page["has_more"]), (["m-1".to_owned()].as_slice(), &json!(false)));
    let page = server.get("/v1/models?limit=1&before_id=m-1").await.ok();
    assert_eq!((ids(&page).as_slice(), &page["has_more"]), (["m-2".to_owned()].as_slice(), &json!(true)));
    let page = server.get("/v1/models?lifecycle[]=retired").await.ok();
    assert_eq!(ids(&page), ["m-0"]);
    let page = server.get("/v1/models?after_id=m-0&lifecycle[]=retired").await.ok();
    assert_eq!(page, json!({"data": [], "has_more": false, "first_id": null, "last_id": null}));
    for query in ["limit=0", "limit=1001", "lifecycle[]=old", "after_id=none", "after_id=m-1&before_id=m-2"] {
        assert_eq!(server.get(&format!("/v1/models?{query}")).await.refusal().0, 400, "{query}");
    }
}

#[tokio::test]
async fn a_model_is_found_by_its_name_if_it_is_listed() {
    let server = Server::start().await;
    assert_eq!(server.get("/v1/models/m-2").await.ok()["lifecycle"], "deprecated");
    assert_eq!(server.get("/v1/models/m-0").await.ok()["lifecycle"], "retired");
    assert_eq!(server.get("/v1/models/org%2Fany").await.refusal().0, 404, "served, but not listed");
    assert_eq!(server.get("/v1/models/none").await.refusal().0, 404);
}
