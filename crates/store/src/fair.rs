//! Which session runs next: a queue that is fair between workspaces.
//!
//! ```text
//!   push ──▶ waiting ── pop ──▶ running ── ended ──▶ forgotten
//!               ▲                  ▲ │
//!               └────── push ──────┼─┘
//!                                began
//! ```
//!
//! Each workspace has a lane, first come, first served. The next session comes from the workspace that has the
//! fewest running; among equals from the one that was served least recently, a new one being behind those that are
//! there. So a workspace with one session waits for at most one session of each other workspace, however many those
//! have queued. No lane is served over its limit, and none if the limit in all is reached.
//!
//! A plain data structure: no clock, no waiting, no database. What does not fit is not lost, it is in the database;
//! the queue remembers which lanes were cut off and says when it must look there again ([`FairQueue::is_short`]).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use protocol::id::{SessionId, WorkspaceId};

use crate::limits::Limits;

/// Waiting sessions that are kept, in all: about a hundred bytes each.
pub(crate) const READY_MAX: usize = 65_536;
/// Waiting sessions of one workspace that are kept. Enough that the database is asked seldom, and few enough that
/// many large workspaces fit in.
pub(crate) const LANE_MAX: usize = 16_384;

/// The waiting and the running sessions.
pub(crate) struct FairQueue {
    limits: Limits,
    lanes: HashMap<WorkspaceId, Lane>,
    /// The lanes with a waiting session and below their limit, by running sessions, then by turn.
    open: BTreeMap<(u32, u64), WorkspaceId>,
    /// How many lanes are starved.
    starved: usize,
    /// Those that wait, of all lanes.
    waiting: HashSet<SessionId>,
    running: HashMap<SessionId, WorkspaceId>,
    /// Grows with each that is given out, so that no two lanes have the same.
    turn: u64,
    /// Something is in the database that was never pushed, or was given out in vain.
    has_unseen: bool,
    /// There are more workspaces than the queue has places.
    has_overflowed: bool,
}

/// One workspace's part.
struct Lane {
    waiting: VecDeque<SessionId>,
    running: u32,
    /// When it was last served, or made.
    turn: u64,
    /// There are more in the database. How many is not known exactly: a session that is pushed twice and does not
    /// fit is counted twice.
    left_behind: usize,
}

impl Lane {
    fn has_place(&self, limits: &Limits) -> bool {
        limits.running_per_workspace_max.is_none_or(|max| self.running < max)
    }

    /// Whether it would be served if what was left behind were here.
    fn is_starved(&self, limits: &Limits) -> bool {
        self.left_behind > 0 && self.waiting.is_empty() && self.has_place(limits)
    }
}

impl FairQueue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            open: BTreeMap::new(),
            starved: 0,
            waiting: HashSet::new(),
            running: HashMap::new(),
            turn: 0,
            has_unseen: false,
            has_overflowed: false,
        }
    }

    /// A session wants a brain and nobody holds it: if it was running it is not any more. Without effect if it waits
    /// already.
    pub(crate) fn push(&mut self, session: &SessionId, workspace: &WorkspaceId) {
        self.ended(session);
        if self.waiting.contains(session) {
            return;
        }
        if self.waiting.len() >= READY_MAX && !self.make_room(workspace) {
            match self.lanes.contains_key(workspace) {
                true => self.change(workspace, |lane| lane.left_behind += 1),
                false => self.has_overflowed = true,
            }
            return;
        }
        let mut is_taken = true;
        self.change(workspace, |lane| {
            if lane.waiting.len() < LANE_MAX {
                lane.waiting.push_back(session.clone());
            } else {
                lane.left_behind += 1;
                is_taken = false;
            }
        });
        if is_taken {
            self.waiting.insert(session.clone());
        }
    }

    /// The next session. It counts as running from now on: if it turns out that nobody holds it after all, say
    /// [`FairQueue::ended`].
    pub(crate) fn pop(&mut self) -> Option<SessionId> {
        if !self.has_place() {
            return None;
        }
        let workspace = self.open.first_key_value()?.1.clone();
        self.turn += 1;
        let turn = self.turn;
        let mut next = None;
        self.change(&workspace, |lane| {
            next = lane.waiting.pop_front();
            lane.turn = turn;
        });
        let session = next.expect("an open lane has a session");
        self.waiting.remove(&session);
        self.began(&session, &workspace);
        Some(session)
    }

    /// Somebody holds this session, from the queue or not. May be said again.
    pub(crate) fn began(&mut self, session: &SessionId, workspace: &WorkspaceId) {
        let is_waiting = self.waiting.remove(session);
        let is_new = self.running.insert(session.clone(), workspace.clone()).is_none();
        self.change(workspace, |lane| {
            if is_waiting {
                lane.waiting.retain(|waiting| waiting != session);
            }
            lane.running += u32::from(is_new);
        });
    }

    /// Nobody holds this session any more. May be said again.
    pub(crate) fn ended(&mut self, session: &SessionId) {
        if let Some(workspace) = self.running.remove(session) {
            self.change(&workspace, |lane| lane.running -= 1);
        }
    }

    /// These and no others are held: the truth, after what was told may have been wrong.
    pub(crate) fn set_running(&mut self, held: impl IntoIterator<Item = (SessionId, WorkspaceId)>) {
        // Sorted, because the lanes that are made get their turns in this order, and simulations want the same each time.
        let held: BTreeMap<SessionId, WorkspaceId> = held.into_iter().collect();
        let over: Vec<SessionId> =
            self.running.keys().filter(|session| !held.contains_key(*session)).cloned().collect();
        for session in over {
            self.ended(&session);
        }
        for (session, workspace) in held {
            self.began(&session, &workspace);
        }
    }

    /// Whether [`FairQueue::pop`] would give a session.
    pub(crate) fn can_pop(&self) -> bool {
        self.has_place() && !self.open.is_empty()
    }

    /// Whether sessions that are only in the database could run now. False while none could.
    pub(crate) fn is_short(&self) -> bool {
        let is_dry = self.has_overflowed && self.open.is_empty();
        self.has_place() && (self.has_unseen || self.starved > 0 || is_dry)
    }

    /// There may be sessions in the database that were never pushed.
    pub(crate) fn look_again(&mut self) {
        self.has_unseen = true;
    }

    /// The database is about to be read: forgets what was left behind. [`FairQueue::refill`] is to follow.
    pub(crate) fn begin_refill(&mut self) {
        (self.has_unseen, self.has_overflowed) = (false, false);
        self.mark(|lane| lane.left_behind > 0, 0);
    }

    /// Takes in what the database holds: of each workspace the first [`LANE_MAX`]` + 1` waiting sessions (the one too
    /// many says that there are more), the first of all workspaces before the second of any, [`READY_MAX`] in all.
    pub(crate) fn refill(&mut self, sessions: &[(SessionId, WorkspaceId)]) {
        for (session, workspace) in sessions {
            self.push(session, workspace);
        }
        if sessions.len() >= READY_MAX {
            // Each of these workspaces may have more, and if none had its second there may be more workspaces.
            let owners: HashSet<&WorkspaceId> = sessions.iter().map(|(_, workspace)| workspace).collect();
            self.has_overflowed |= owners.len() == sessions.len();
            self.mark(|lane| lane.left_behind == 0, 1);
        }
    }

    /// Whether no further session of this workspace may begin to wait. Sessions that have ended or were deleted while
    /// they waited count until they are popped.
    pub(crate) fn is_full(&self, workspace: &WorkspaceId) -> bool {
        let Some(max) = self.limits.waiting_per_workspace_max else { return false };
        let lane = self.lanes.get(workspace);
        lane.map_or(0, |lane| lane.waiting.len() + lane.left_behind) >= max as usize
    }

    fn has_place(&self) -> bool {
        self.limits.running_max.is_none_or(|max| self.running.len() < max as usize)
    }

    /// Halves the longest lane. Not for a workspace that has at least its share already: then `false`.
    fn make_room(&mut self, workspace: &WorkspaceId) -> bool {
        let share = READY_MAX / self.lanes.len().max(1);
        if self.lanes.get(workspace).is_some_and(|lane| lane.waiting.len() >= share) {
            return false;
        }
        let Some((longest, kept)) = self
            .lanes
            .iter()
            .map(|(workspace, lane)| (workspace, lane.waiting.len() / 2))
            .max_by_key(|(_, kept)| *kept)
            .filter(|(_, kept)| *kept > 0)
        else {
            return false;
        };
        let longest = longest.clone();
        let mut removed = VecDeque::new();
        self.change(&longest, |lane| {
            removed = lane.waiting.split_off(kept);
            lane.left_behind += removed.len();
        });
        for session in removed {
            self.waiting.remove(&session);
        }
        true
    }

    /// Sets what these lanes have left behind.
    fn mark(&mut self, which: impl Fn(&Lane) -> bool, left_behind: usize) {
        let lanes = self.lanes.iter().filter(|(_, lane)| which(lane));
        let marked: Vec<WorkspaceId> = lanes.map(|(workspace, _)| workspace.clone()).collect();
        for workspace in marked {
            self.change(&workspace, |lane| lane.left_behind = left_behind);
        }
    }

    /// Changes a lane, made if need be, and keeps what hangs on it: its place among the open ones, the count of those
    /// that starve. A lane of which there is nothing to say is forgotten.
    fn change(&mut self, workspace: &WorkspaceId, change: impl FnOnce(&mut Lane)) {
        if !self.lanes.contains_key(workspace) {
            self.turn += 1;
            let lane = Lane { waiting: VecDeque::new(), running: 0, turn: self.turn, left_behind: 0 };
            self.lanes.insert(workspace.clone(), lane);
        }
        let lane = self.lanes.get_mut(workspace).expect("just made");
        self.open.remove(&(lane.running, lane.turn));
        self.starved -= usize::from(lane.is_starved(&self.limits));
        change(lane);
        self.starved += usize::from(lane.is_starved(&self.limits));
        if !lane.waiting.is_empty() && lane.has_place(&self.limits) {
            self.open.insert((lane.running, lane.turn), workspace.clone());
        }
        if lane.waiting.is_empty() && lane.running == 0 && lane.left_behind == 0 {
            self.lanes.remove(workspace);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(number: usize) -> SessionId {
        SessionId::from_text(format!("sesn_{number}"))
    }

    fn workspace(name: impl std::fmt::Display) -> WorkspaceId {
        WorkspaceId::from_text(format!("wrkspc_{name}"))
    }

    fn queue(running_max: Option<u32>, per_workspace: Option<u32>) -> FairQueue {
        FairQueue::new(Limits {
            running_max,
            running_per_workspace_max: per_workspace,
            waiting_per_workspace_max: None,
        })
    }

    #[test]
    fn one_session_passes_ten_thousand_of_another_workspace() {
        let mut queue = queue(Some(8), None);
        for number in 0..10_000 {
            queue.push(&session(number), &workspace("large"));
        }
        for _ in 0..8 {
            queue.pop().expect("there is room");
        }
        queue.push(&session(10_000), &workspace("small"));
        assert_eq!(queue.pop(), None, "all places are taken");
        queue.ended(&session(3));
        assert_eq!(queue.pop(), Some(session(10_000)));
    }

    #[test]
    fn workspaces_with_equally_many_running_take_turns() {
        let mut queue = queue(None, None);
        for number in 0..9 {
            queue.push(&session(number), &workspace(number / 3));
        }
        // As if each ended at once.
        let order: Vec<SessionId> = std::iter::from_fn(|| {
            let next = queue.pop()?;
            queue.ended(&next);
            Some(next)
        })
        .collect();
        assert_eq!(order, [0, 3, 6, 1, 4, 7, 2, 5, 8].map(session));
    }

    #[test]
    fn a_workspace_at_its_limit_leaves_the_place_to_others() {
        let mut queue = queue(Some(3), Some(2));
        for number in 0..4 {
            queue.push(&session(number), &workspace("a"));
        }
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(session(0)), Some(session(1)), None]);
        queue.push(&session(9), &workspace("b"));
        assert_eq!(queue.pop(), Some(session(9)));
        queue.ended(&session(9));
        assert!(!queue.can_pop());
        queue.ended(&session(0));
        assert_eq!(queue.pop(), Some(session(2)));
    }

    #[test]
    fn what_is_told_twice_counts_once() {
        let mut queue = queue(None, Some(1));
        queue.began(&session(1), &workspace("a"));
        queue.began(&session(1), &workspace("a"));
        queue.push(&session(2), &workspace("a"));
        queue.push(&session(2), &workspace("a"));
        assert_eq!(queue.pop(), None);
        queue.ended(&session(1));
        queue.ended(&session(1));
        assert_eq!([queue.pop(), queue.pop()], [Some(session(2)), None]);
    }

    #[test]
    fn a_session_that_is_pushed_is_not_running_and_one_that_began_is_not_waiting() {
        let mut queue = queue(None, Some(1));
        queue.push(&session(1), &workspace("a"));
        queue.began(&session(1), &workspace("a"));
        assert_eq!(queue.pop(), None);
        // Its lease has lapsed.
        queue.push(&session(1), &workspace("a"));
        assert_eq!(queue.pop(), Some(session(1)));
    }

    #[test]
    fn the_truth_replaces_what_was_told() {
        let mut queue = queue(Some(2), None);
        queue.began(&session(1), &workspace("a"));
        queue.began(&session(2), &workspace("b"));
        queue.push(&session(3), &workspace("a"));
        queue.set_running([(session(2), workspace("b"))]);
        assert_eq!([queue.pop(), queue.pop()], [Some(session(3)), None]);
    }

    #[test]
    fn a_workspace_is_full_at_its_limit_of_waiting_sessions_and_not_after_one_is_taken() {
        let limits = Limits { waiting_per_workspace_max: Some(2), ..Limits::default() };
        let mut queue = FairQueue::new(limits);
        queue.push(&session(1), &workspace("a"));
        assert!(!queue.is_full(&workspace("a")));
        queue.push(&session(2), &workspace("a"));
        assert!(queue.is_full(&workspace("a")) && !queue.is_full(&workspace("b")));
        queue.pop();
        assert!(!queue.is_full(&workspace("a")));
    }

    #[test]
    fn a_lane_that_was_cut_off_is_read_again_when_it_runs_empty() {
        let mut queue = queue(None, None);
        for number in 0..=LANE_MAX {
            queue.push(&session(number), &workspace("a"));
        }
        for number in 0..LANE_MAX {
            assert!(!queue.is_short());
            assert_eq!(queue.pop(), Some(session(number)));
            queue.ended(&session(number));
        }
        assert!(queue.is_short() && !queue.can_pop());
        queue.begin_refill();
        queue.refill(&[(session(LANE_MAX), workspace("a"))]);
        assert!(!queue.is_short() && queue.can_pop());
    }

    #[test]
    fn a_cut_off_lane_at_its_limit_asks_for_nothing() {
        let mut queue = queue(None, Some(1));
        queue.began(&session(0), &workspace("a"));
        queue.change(&workspace("a"), |lane| lane.left_behind = 5);
        assert!(!queue.is_short());
        queue.ended(&session(0));
        assert!(queue.is_short());
    }

    #[test]
    fn workspaces_of_a_refill_that_was_not_all_are_read_again_when_they_run_empty() {
        let mut queue = queue(None, None);
        let sessions: Vec<_> =
            (0..READY_MAX).map(|number| (session(number), workspace(number % 7))).collect();
        queue.look_again();
        assert!(queue.is_short());
        queue.begin_refill();
        queue.refill(&sessions);
        assert!(!queue.is_short());
        while let Some(next) = queue.pop() {
            queue.ended(&next);
        }
        assert!(queue.is_short());
        queue.begin_refill();
        queue.refill(&[]);
        assert!(!queue.is_short() && queue.lanes.is_empty());
    }

    #[test]
    fn a_full_queue_makes_room_for_a_new_workspace_at_the_cost_of_the_largest() {
        let mut queue = queue(None, None);
        let lanes = READY_MAX / LANE_MAX;
        for number in 0..READY_MAX {
            queue.push(&session(number), &workspace(number % lanes));
        }
        queue.push(&session(READY_MAX), &workspace("late"));
        assert!(queue.waiting.len() <= READY_MAX);
        let first: Vec<SessionId> = (0..=lanes).map_while(|_| queue.pop()).collect();
        assert!(first.contains(&session(READY_MAX)));
    }

    #[test]
    fn nothing_is_remembered_of_workspaces_that_are_done() {
        let mut queue = queue(None, None);
        for number in 0..100 {
            queue.push(&session(number), &workspace(number));
        }
        while let Some(next) = queue.pop() {
            queue.ended(&next);
        }
        assert!(queue.lanes.is_empty() && queue.open.is_empty() && queue.running.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Doing {
        Push {
            session: usize,
        },
        Pop,
        /// The oldest of the running ones.
        End {
            index: usize,
        },
    }

    fn doing() -> impl Strategy<Value = Doing> {
        prop_oneof![
            3 => (0..200_usize).prop_map(|session| Doing::Push { session }),
            2 => Just(Doing::Pop),
            2 => (0..8_usize).prop_map(|index| Doing::End { index }),
        ]
    }

    proptest! {
        /// Against the obvious, slow way to say the same.
        #[test]
        fn the_next_is_always_the_oldest_of_the_workspace_with_the_fewest_running(
            history in proptest::collection::vec(doing(), 1..300),
            running_max in 1..6_u32,
            per_workspace in 1..4_u32,
        ) {
            let owner = |number: usize| number % 5;
            let mut queue = queue(Some(running_max), Some(per_workspace));
            let mut waiting: Vec<usize> = Vec::new();
            let mut running: Vec<usize> = Vec::new();
            for doing in history {
                match doing {
                    Doing::Push { session: number } => {
                        if !running.contains(&number) {
                            queue.push(&session(number), &workspace(owner(number)));
                            if !waiting.contains(&number) {
                                waiting.push(number);
                            }
                        }
                    }
                    Doing::End { index } => {
                        if index < running.len() {
                            queue.ended(&session(running.remove(index)));
                        }
                    }
                    Doing::Pop => {
                        let count = |of: usize| running.iter().filter(|number| owner(**number) == of).count();
                        let fewest = waiting
                            .iter()
                            .map(|number| count(owner(*number)))
                            .min()
                            .filter(|fewest| *fewest < per_workspace as usize)
                            .filter(|_| running.len() < running_max as usize);
                        prop_assert_eq!(queue.can_pop(), fewest.is_some());
                        match (queue.pop(), fewest) {
                            (None, None) => {}
                            (Some(next), Some(fewest)) => {
                                let place = waiting.iter().position(|number| session(*number) == next);
                                let number = waiting.remove(place.expect("it waits"));
                                prop_assert_eq!(count(owner(number)), fewest);
                                let older = waiting[..place.expect("it waits")].iter();
                                prop_assert!(older.copied().all(|older| owner(older) != owner(number)));
                                running.push(number);
                            }
                            (next, fewest) => prop_assert!(false, "{next:?} where {fewest:?} run"),
                        }
                    }
                }
            }
        }

        /// However much the others have queued and however long their sessions take.
        #[test]
        fn a_workspace_with_one_session_waits_for_at_most_one_of_each_other(
            others in proptest::collection::vec(1..50_usize, 1..6),
            places in 1..4_u32,
            ends in proptest::collection::vec(0..4_usize, 60),
        ) {
            let mut queue = queue(Some(places), None);
            let mut number = 0;
            for (other, sessions) in others.iter().enumerate() {
                for _ in 0..*sessions {
                    queue.push(&session(number), &workspace(other));
                    number += 1;
                }
            }
            let mut running: VecDeque<SessionId> = std::iter::from_fn(|| queue.pop()).collect();
            let single = session(number);
            queue.push(&single, &workspace("single"));
            let mut passed = 0;
            for end in ends {
                if running.is_empty() {
                    break;
                }
                let over = running.remove(end % running.len()).expect("it is there");
                queue.ended(&over);
                let Some(next) = queue.pop() else { continue };
                if next == single {
                    break;
                }
                passed += 1;
                running.push_back(next);
            }
            prop_assert!(passed <= others.len(), "{passed} passed it");
        }
    }
}
