//! Wake-ups for whoever watches a session. They carry no data and may be lost: whoever wakes goes on from its own
//! place, and what it does not find here it finds in the store.
//!
//! A session that nobody watches costs nothing here. One that is watched has one channel, whatever the number of
//! watchers; it also holds what its followers are likely to want next: the last few flushes, and the previews.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use protocol::event::PreviewKind;
use protocol::id::{EventId, SessionId};
use protocol::position::Position;
use tokio::sync::{Notify, broadcast};

use crate::rules::catch_up::{Chunk, Progress};

/// Previews kept for one session. A follower that is further behind loses some; it never loses an event.
const PREVIEWS_MAX: usize = 512;
/// And how large they may be together.
const PREVIEW_BYTES_MAX: usize = 128 << 10;

/// Flushes kept for one session: as many as happen while a follower wakes up, with some to spare.
const RECENT_MAX: usize = 8;
/// And how large they may be together. A larger one is read from the store by each follower.
const RECENT_BYTES_MAX: usize = 64 << 10;

/// The channels of the sessions that are watched now.
#[derive(Default)]
pub(crate) struct Hub {
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    by_id: HashMap<SessionId, Arc<Channel>>,
    is_closed: bool,
    /// What other processes say that is not the store's own business.
    words: Option<broadcast::Sender<String>>,
}

/// Words that may wait for somebody who listens; a slow listener misses the oldest.
const WORDS_MAX: usize = 256;

struct Channel {
    bell: Bell,
    previews: Mutex<Ring>,
    recent: Mutex<Recent>,
    /// How many watch who want previews.
    wanting_previews: AtomicUsize,
}

/// The marks, and whoever waits for a change of them, woken in the order in which they began to wait. (Tokio's channel
/// for this wakes them in a random order, so that no simulation would be the same twice.)
struct Bell {
    marks: Mutex<Marked>,
    rung: Notify,
}

struct Marked {
    /// Grows with each change.
    version: u64,
    marks: Marks,
}

impl Bell {
    fn new(marks: Marks) -> Self {
        Self { marks: Mutex::new(Marked { version: 0, marks }), rung: Notify::new() }
    }

    fn marks(&self) -> Marks {
        lock(&self.marks).marks.clone()
    }

    fn version(&self) -> u64 {
        lock(&self.marks).version
    }

    fn ring(&self, change: impl FnOnce(&mut Marks)) {
        let mut marked = lock(&self.marks);
        change(&mut marked.marks);
        marked.version += 1;
        drop(marked);
        self.rung.notify_waiters();
    }

    /// Waits for another version than `seen`, and makes it that.
    async fn next(&self, seen: &mut u64) -> Marks {
        loop {
            // Listens before it looks: what is rung in between is heard.
            let rung = self.rung.notified();
            {
                let marked = lock(&self.marks);
                if marked.version != *seen {
                    *seen = marked.version;
                    return marked.marks.clone();
                }
            }
            rung.await;
        }
    }
}

/// What the last flushes committed to a session, for followers that are just as far as it was: a thousand of them
/// cost no read at all. Only ever a copy of what is in the store; whoever does not find its place here reads there.
#[derive(Default)]
struct Recent {
    flushes: VecDeque<(u64, Fresh)>,
    size_bytes: usize,
}

/// What one flush committed to a session.
pub(crate) struct Fresh {
    /// How far a follower is that has seen all there was before.
    pub(crate) from: Progress,
    pub(crate) chunk: Chunk,
}

impl Recent {
    fn push(&mut self, mark: u64, fresh: Fresh) {
        self.size_bytes += fresh.chunk.size_bytes();
        self.flushes.push_back((mark, fresh));
        while self.flushes.len() > RECENT_MAX || self.size_bytes > RECENT_BYTES_MAX {
            let Some((_, oldest)) = self.flushes.pop_front() else { break };
            self.size_bytes -= oldest.chunk.size_bytes();
        }
    }
}

/// What has changed: counters that only grow, and how it ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    /// Grows when the log or the inbox changes.
    pub(crate) log: u64,
    /// Grows when a preview is published.
    pub(crate) previews: u64,
    /// The `session.deleted` event, once it is.
    pub(crate) deleted: Option<Bytes>,
    pub(crate) is_closed: bool,
}

/// A preview on its way.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) after: Position,
    pub(crate) kind: PreviewKind,
    pub(crate) event: EventId,
    pub(crate) is_start: bool,
    pub(crate) json: Bytes,
}

#[derive(Default)]
struct Ring {
    frames: VecDeque<Frame>,
    /// The number of the first of them.
    first: u64,
    size_bytes: usize,
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    fn drop_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.first += 1;
            self.size_bytes -= frame.json.len();
        }
    }
}

impl Hub {
    /// Watches a session from now on.
    pub(crate) fn subscribe(self: &Arc<Self>, id: &SessionId) -> Subscription {
        let mut channels = lock(&self.channels);
        let is_closed = channels.is_closed;
        let channel = channels.by_id.entry(id.clone()).or_insert_with(|| {
            let bell = Bell::new(Marks { is_closed, ..Marks::default() });
            Arc::new(Channel {
                bell,
                previews: Mutex::default(),
                recent: Mutex::default(),
                wanting_previews: AtomicUsize::new(0),
            })
        });
        let channel = channel.clone();
        drop(channels);
        let seen = channel.bell.version();
        Subscription {
            hub: self.clone(),
            id: id.clone(),
            channel: Some(channel),
            seen,
            wants_previews: false,
        }
    }

    /// The sessions that somebody watches.
    pub(crate) fn watched(&self) -> HashSet<SessionId> {
        lock(&self.channels).by_id.keys().cloned().collect()
    }

    /// The sessions that somebody watches who wants previews.
    pub(crate) fn wanting_previews(&self) -> Vec<SessionId> {
        let channels = lock(&self.channels);
        let wanting = channels.by_id.iter().filter(|(_, channel)| channel.wanting_previews.load(Relaxed) > 0);
        wanting.map(|(id, _)| id.clone()).collect()
    }

    /// Another process says something.
    pub(crate) fn say(&self, word: &str) {
        if let Some(words) = &lock(&self.channels).words {
            // Nobody listens any more.
            let _ = words.send(word.to_owned());
        }
    }

    /// What other processes say from now on.
    pub(crate) fn words(&self) -> broadcast::Receiver<String> {
        let mut channels = lock(&self.channels);
        channels.words.get_or_insert_with(|| broadcast::Sender::new(WORDS_MAX)).subscribe()
    }

    /// After a commit: these sessions' logs or inboxes have changed.
    pub(crate) fn changed(&self, changed: Vec<(SessionId, Option<Fresh>)>) {
        let channels = lock(&self.channels);
        if channels.by_id.is_empty() {
            return;
        }
        for (id, fresh) in changed {
            let Some(channel) = channels.by_id.get(&id) else { continue };
            let mark = channel.bell.marks().log + 1;
            if let Some(fresh) = fresh {
                lock(&channel.recent).push(mark, fresh);
            }
            channel.bell.ring(|marks| marks.log = mark);
        }
    }

    /// After a commit: this session is gone.
    pub(crate) fn deleted(&self, id: &SessionId, json: Bytes) {
        if let Some(channel) = lock(&self.channels).by_id.get(id) {
            channel.bell.ring(|marks| {
                marks.log += 1;
                marks.deleted = Some(json);
            });
        }
    }

    /// Whether anybody watches the session.
    pub(crate) fn is_watched(&self, id: &SessionId) -> bool {
        lock(&self.channels).by_id.contains_key(id)
    }

    pub(crate) fn publish(&self, id: &SessionId, frame: Frame) {
        // The lock is held throughout: a copy of the channel outside it would look like a watcher.
        let channels = lock(&self.channels);
        let Some(channel) = channels.by_id.get(id) else { return };
        let mut ring = lock(&channel.previews);
        ring.size_bytes += frame.json.len();
        ring.frames.push_back(frame);
        while ring.frames.len() > PREVIEWS_MAX || ring.size_bytes > PREVIEW_BYTES_MAX {
            ring.drop_first();
        }
        let end = ring.end();
        drop(ring);
        channel.bell.ring(|marks| marks.previews = marks.previews.max(end));
    }

    /// Ends all watching.
    pub(crate) fn close(&self) {
        let mut channels = lock(&self.channels);
        channels.is_closed = true;
        for channel in channels.by_id.values() {
            channel.bell.ring(|marks| marks.is_closed = true);
        }
    }
}

/// Somebody watches a session.
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    id: SessionId,
    /// Taken only when it is dropped.
    channel: Option<Arc<Channel>>,
    /// The version of the marks that [`Self::next_marks`] gave last.
    seen: u64,
    wants_previews: bool,
}

impl Subscription {
    /// From now on previews are wanted.
    pub(crate) fn want_previews(&mut self) {
        if !std::mem::replace(&mut self.wants_previews, true) {
            self.channel().wanting_previews.fetch_add(1, Relaxed);
        }
    }

    /// What is watched.
    pub(crate) fn session(&self) -> &SessionId {
        &self.id
    }

    pub(crate) fn marks(&self) -> Marks {
        self.channel().bell.marks()
    }

    /// Returns when the marks are no longer those that [`Self::next_marks`] gave last.
    pub(crate) async fn next_marks(&mut self) -> Marks {
        let Self { hub: _, id: _, channel, seen, wants_previews: _ } = self;
        channel.as_ref().expect(TAKEN).bell.next(seen).await
    }

    /// What was committed next after `progress`, with the log's mark then, if that is still remembered.
    pub(crate) fn recent_after(&self, progress: &Progress) -> Option<(u64, Chunk)> {
        let recent = lock(&self.channel().recent);
        let (mark, fresh) = recent.flushes.iter().find(|(_, fresh)| fresh.from.is_level_with(progress))?;
        Some((*mark, fresh.chunk.clone()))
    }

    /// The previews from number `next` on, and the number after them. The first may have a later number than `next`:
    /// those between are lost.
    pub(crate) fn previews_from(&self, next: u64) -> (u64, Vec<Frame>) {
        let ring = lock(&self.channel().previews);
        let first = next.max(ring.first);
        let skipped = usize::try_from(first - ring.first).unwrap_or(usize::MAX);
        (first, ring.frames.iter().skip(skipped).cloned().collect())
    }

    /// The number that the next preview will have.
    pub(crate) fn previews_end(&self) -> u64 {
        lock(&self.channel().previews).end()
    }

    fn channel(&self) -> &Channel {
        self.channel.as_ref().expect(TAKEN)
    }
}

/// When a subscription has no channel any more.
const TAKEN: &str = "taken only when it is dropped";

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.wants_previews {
            self.channel().wanting_previews.fetch_sub(1, Relaxed);
        }
        let mut channels = lock(&self.hub.channels);
        drop(self.channel.take());
        // Counted under the lock under which it is handed out: if only the map holds it, nobody watches.
        if channels.by_id.get(&self.id).is_some_and(|channel| Arc::strong_count(channel) == 1) {
            channels.by_id.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is consistent after every statement that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
