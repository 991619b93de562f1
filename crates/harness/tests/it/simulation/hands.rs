//! Hands that lose replies and sandboxes, over those that only pretend.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox::{
    Call, Collected, Error, Exits, Output, Pool, Provider, Resources, SandboxId, SandboxInfo, Saved,
};
use testkit::hands::FakeHands;

use super::dice::{Climate, Dice, Misfortunes};

pub(super) struct Hands {
    within: FakeHands,
    dice: Dice,
    climate: Climate,
    misfortunes: Arc<Misfortunes>,
}

impl Hands {
    pub(super) fn new(dice: Dice, climate: Climate, misfortunes: Arc<Misfortunes>) -> Self {
        Self { within: FakeHands::default(), dice, climate, misfortunes }
    }

    /// What ran, in order: call id and command.
    pub(super) fn runs(&self) -> Vec<(String, String)> {
        self.within.runs()
    }

    fn strikes(&self, name: &'static str, one_in: u64) -> bool {
        self.misfortunes.strikes(name, &self.dice, one_in)
    }

    async fn reach(&self) -> Result<(), Error> {
        tokio::time::sleep(self.dice.millis(20)).await;
        if self.strikes("requests to hands and replies that were lost", self.climate.deaf) {
            Err(unavailable())
        } else {
            Ok(())
        }
    }

    async fn perhaps_kill(&self, id: &SandboxId) -> Result<(), Error> {
        if self.strikes("sandboxes that died", self.climate.kills) {
            self.within.destroy(id).await
        } else {
            Ok(())
        }
    }
}

fn unavailable() -> Error {
    Error::Unavailable { reason: "out of reach".to_owned() }
}

#[async_trait]
impl Provider for Hands {
    async fn provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        self.reach().await?;
        self.within.provision(id, fence, resources).await?;
        self.reach().await
    }

    async fn execute(&self, call: Call) -> Result<Output, Error> {
        let sandbox = call.sandbox.clone();
        self.reach().await?;
        self.perhaps_kill(&sandbox).await?;
        let output = self.within.execute(call).await?;
        // It runs for a while, and its effect is there from the start.
        tokio::time::sleep(self.dice.millis(if self.dice.one_in(10) { 30_000 } else { 500 })).await;
        self.perhaps_kill(&sandbox).await?;
        self.reach().await?;
        Ok(output)
    }

    async fn cancel(&self, id: &SandboxId, fence: u64, call_id: &str) -> Result<bool, Error> {
        self.reach().await?;
        self.within.cancel(id, fence, call_id).await
    }

    async fn touch(&self, id: &SandboxId, fence: u64) -> Result<(), Error> {
        self.reach().await?;
        self.within.touch(id, fence).await
    }

    async fn collect_outputs(&self, id: &SandboxId, into: &Path) -> Result<Vec<Collected>, Error> {
        self.reach().await?;
        self.within.collect_outputs(id, into).await
    }

    async fn save(&self, id: &SandboxId, fence: u64, into: &Path) -> Result<Saved, Error> {
        self.reach().await?;
        self.within.save(id, fence, into).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), Error> {
        self.reach().await?;
        self.within.destroy(id).await
    }

    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        self.reach().await?;
        self.within.list().await
    }

    async fn keep_ready(&self, pools: &[Pool]) -> Result<(), Error> {
        self.reach().await?;
        self.within.keep_ready(pools).await
    }

    fn exits(&self) -> Exits {
        self.within.exits()
    }
}
