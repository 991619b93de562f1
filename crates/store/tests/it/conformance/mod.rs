//! What every store must do. Each function gets a store of its own.

pub(crate) mod fairness;
pub(crate) mod following;
pub(crate) mod leases;
pub(crate) mod logs;
pub(crate) mod resources;
pub(crate) mod sessions;
pub(crate) mod vaults;

/// Calls `$run` with the whole list, topic by topic.
macro_rules! suite {
    ($run:ident) => {
        $run! {
            logs {
                positions_count_from_one_without_a_gap,
                an_append_is_all_or_nothing,
                of_two_appends_at_one_position_one_wins,
                an_append_without_drafts_only_looks,
                times_grow_even_if_the_clock_jumps_back,
                the_text_is_the_event_as_shown,
                usage_is_stamped_with_the_figures_of_the_moment,
                taking_moves_an_event_from_the_inbox_into_the_log,
                events_are_taken_in_the_order_of_the_drafts,
                taking_what_is_not_there_moves_nothing,
                taking_twice_moves_nothing,
                a_slice_runs_both_ways,
                a_slice_ends_at_its_bytes_but_is_never_empty,
                a_slice_shows_only_its_kinds,
                a_slice_shows_only_its_times,
                private_events_are_left_out,
                history_and_inbox_are_of_one_moment,
                an_unknown_session_has_no_events,
                many_sessions_are_appended_to_at_once,
            }
            leases {
                a_claimed_session_is_nobody_elses,
                an_old_epoch_appends_nothing,
                an_old_epoch_appends_nothing_among_others,
                a_lease_lapses_by_the_stores_clock,
                an_append_renews_the_lease,
                a_renewal_renews_the_lease,
                a_lapsed_lease_still_serves_until_it_is_claimed,
                a_released_token_is_fenced,
                releasing_a_lapsed_lease_leaves_the_new_one,
                sessions_are_claimed_in_the_order_in_which_they_wanted,
                a_claim_waits_until_somebody_wants_a_brain,
                a_satisfied_session_is_not_claimed,
                a_released_session_that_still_wants_is_claimed_again,
                a_lapsed_lease_is_found_by_waiting_claims,
                many_claims_get_one_session_each,
                a_claim_dropped_while_it_waits_loses_nothing,
                a_claim_dropped_as_it_succeeds_gives_the_session_back,
                a_change_wakes_who_watches,
                a_deleted_session_is_fenced,
            }
            fairness {
                a_workspace_with_one_session_is_not_kept_waiting_by_one_with_many,
                a_claim_of_several_takes_from_every_workspace,
                a_newcomer_is_served_long_before_the_backlog_of_workspaces_with_as_few_running,
                a_session_shows_what_it_waits_for_and_since_when,
                holders_that_die_in_a_row_are_counted_until_one_gets_on,
            }
            following {
                a_fresh_stream_shows_what_comes,
                a_fresh_stream_has_no_backlog,
                a_message_is_shown_waiting_before_the_session_runs,
                a_message_taken_up_at_once_is_shown_waiting_all_the_same,
                a_message_that_waited_before_the_stream_is_shown_once,
                a_resumed_stream_misses_and_repeats_nothing,
                a_resumed_stream_shows_what_is_pending_again,
                a_resumed_stream_shows_no_waiting_copy_of_what_was_taken_up_before,
                waiting_copies_keep_the_order_of_arrival,
                a_long_append_is_followed_across_chunks,
                processed_on_receipt_is_shown_once,
                private_events_are_passed_over,
                many_followers_see_the_same,
                a_slow_follower_misses_nothing,
                a_dropped_wait_loses_nothing,
                previews_come_between_their_events,
                previews_wait_for_their_event,
                late_previews_are_dropped,
                a_preview_whose_beginning_was_missed_is_not_shown,
                shed_previews_leave_a_prefix,
                deletion_ends_the_stream,
                an_unknown_session_cannot_be_followed,
                closing_ends_the_stream,
            }
            sessions {
                a_new_session_is_idle_and_empty,
                a_session_with_initial_events_is_running,
                an_id_cannot_be_used_twice,
                a_session_is_seen_by_its_workspace_only,
                sent_events_are_echoed_in_order,
                a_refused_event_refuses_the_request,
                results_are_logged_on_receipt,
                an_update_says_what_changed,
                an_update_that_changes_nothing_says_nothing,
                archiving_ends_a_session,
                a_working_session_is_neither_archived_nor_deleted,
                a_deleted_session_leaves_nothing,
                tokens_are_kept_until_their_session_is_over,
                sessions_are_listed_newest_first,
                sessions_are_paged_both_ways,
                sessions_of_the_same_moment_are_paged_by_id,
                sessions_are_filtered,
            }
            resources {
                an_agent_keeps_its_versions,
                agents_are_listed_at_their_latest,
                a_version_cannot_be_skipped,
                a_change_that_panics_harms_nobody,
                an_environments_name_is_unique_until_it_is_archived,
                an_environment_in_use_is_not_deleted,
                environments_are_paged,
                environments_that_ask_for_a_pool_are_found,
                resources_are_seen_by_their_workspace_only,
                keys_are_found_by_their_hash_until_revoked,
                there_is_one_first_workspace,
            }
            vaults {
                a_vault_is_kept_changed_and_listed,
                a_vault_is_seen_by_its_workspace_only,
                a_credential_belongs_to_its_vault,
                a_credential_is_changed_with_its_secrets,
                a_key_is_taken_until_its_credential_is_archived,
                a_vault_holds_so_many_and_no_more,
                archiving_a_vault_purges_what_it_holds,
                a_credential_that_joins_while_its_vault_is_archived_is_archived_with_it,
                deleting_a_vault_deletes_what_it_holds,
                credentials_are_found_in_the_order_of_the_vaults,
                one_at_a_time_renews_a_token,
                a_workspace_has_one_key_wrapped_by_the_one_master_key,
            }
        }
    };
}
pub(crate) use suite;
