//! `GET /v1/models`: newest release first. The one list with ids instead of cursors.

use axum::Json;
use axum::extract::State;
use protocol::model::{Lifecycle, ModelInfo, ModelPage};
use protocol::parse::{Invalid, clipped};

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::query::Query;

const LIMIT: usize = 20;
const LIMIT_MAX: usize = 1_000;
const LIFECYCLES: [(&str, Lifecycle); 3] =
    [("active", Lifecycle::Active), ("deprecated", Lifecycle::Deprecated), ("retired", Lifecycle::Retired)];

pub(crate) async fn list(
    State(door): State<Door>,
    _: Caller,
    mut query: Query,
) -> Result<Json<ModelPage>, Error> {
    let limit = query.limit(LIMIT, LIMIT_MAX)?;
    let after = query.text("after_id")?;
    let before = query.text("before_id")?;
    let lifecycles = lifecycles(&mut query)?;
    query.finish()?;
    if after.is_some() && before.is_some() {
        return Err(Invalid::new("before_id", "must not be given together with `after_id`").into());
    }

    let mut models = door.app.models.models.clone();
    models.sort_by(|one, other| other.created_at.cmp(&one.created_at).then_with(|| one.id.cmp(&other.id)));
    let after = after.map(|id| place("after_id", &models, &id)).transpose()?;
    let before = before.map(|id| place("before_id", &models, &id)).transpose()?;
    let span = match (after, before) {
        (Some(after), _) => &models[after + 1..],
        (None, Some(before)) => &models[..before],
        (None, None) => &models[..],
    };
    let fitting: Vec<&ModelInfo> =
        span.iter().filter(|model| lifecycles.contains(&model.lifecycle)).collect();
    let has_more = fitting.len() > limit;
    let start = if before.is_some() { fitting.len().saturating_sub(limit) } else { 0 };
    let data: Vec<ModelInfo> = fitting[start..].iter().take(limit).map(|model| (*model).clone()).collect();
    Ok(Json(ModelPage {
        has_more,
        first_id: data.first().map(|model| model.id.clone()),
        last_id: data.last().map(|model| model.id.clone()),
        data,
    }))
}

fn lifecycles(query: &mut Query) -> Result<Vec<Lifecycle>, Error> {
    let names = LIFECYCLES.map(|(name, _)| name);
    let asked = query.some_of("lifecycle", &names)?;
    if asked.len() > LIFECYCLES.len() {
        return Err(Invalid::new("lifecycle", "must have at most 3 values").into());
    }
    if asked.is_empty() {
        return Ok(vec![Lifecycle::Active, Lifecycle::Deprecated]);
    }
    Ok(LIFECYCLES
        .into_iter()
        .filter(|(name, _)| asked.contains(name))
        .map(|(_, lifecycle)| lifecycle)
        .collect())
}

fn place(name: &str, models: &[ModelInfo], id: &str) -> Result<usize, Error> {
    models
        .iter()
        .position(|model| model.id == id)
        .ok_or_else(|| Invalid::new(name, format!("no model of the list is called `{}`", clipped(id))).into())
}
