//! Which tests hold which failure scenario of the project's list, as far as what they speak of exists. A test checks that each
//! is there under its name.
//!
//! Not here, for want of what they are about: 7, 36–39, 42 (snapshots, clones, templates), 16, 26–35 (DTL), 21 (clones),
//! 43–47 (the cleaner), 48–51 (failover by a registry), 52, 53 (MDS); of 8 and 41 all but growing and the ends of numbers.

/// Number, file, test.
pub const HELD: &[(u32, &str, &str)] = &[
    (
        1,
        SCENARIOS,
        "scenario_1_2_a_crash_between_append_and_acknowledgement_shows_whole_operations",
    ),
    (2, SCENARIOS, "scenario_2_a_write_of_256_kib_is_whole_or_absent_wherever_it_begins"),
    (
        3,
        SCENARIOS,
        "scenario_3_a_sealed_sco_whose_upload_never_started_is_uploaded_after_the_restart",
    ),
    (4, SCENARIOS, "scenario_4_5_6_a_crash_at_any_step_of_an_upload_leaves_one_valid_object"),
    (5, SCENARIOS, "scenario_4_5_6_a_crash_at_any_step_of_an_upload_leaves_one_valid_object"),
    (6, SCENARIOS, "scenario_6_replaying_from_local_pages_gives_what_a_full_rebuild_gives"),
    (8, SCENARIOS, "scenario_40_a_crash_at_any_step_of_growing_leaves_the_old_or_the_new_size"),
    (9, SCENARIOS, "scenario_9_restarting_twice_without_requests_changes_nothing"),
    (9, "tests/crash.rs", "two_starts_without_io_change_nothing"),
    (10, "tests/crash.rs", "kill_9_again_and_again_loses_nothing_flushed"),
    (12, SCENARIOS, "scenario_12_a_truncated_write_buffer_without_a_copy_is_named"),
    (12, "tests/loss.rs", "damage_in_the_write_buffer_waits_for_the_operator"),
    (12, "tests/loss.rs", "a_loss_is_accepted_or_not_wherever_a_crash_cuts_it_short"),
    (13, SCENARIOS, "scenario_13_a_torn_journal_tail_is_dropped_and_everything_before_it_kept"),
    (14, SCENARIOS, "scenario_14_a_flipped_bit_in_flushed_journal_data_is_detected"),
    (14, SCENARIOS, "scenario_14_a_misdirected_write_in_the_journal_is_detected"),
    (15, SCENARIOS, "scenario_15_local_state_older_than_the_backend_gives_way_to_it"),
    (17, SCENARIOS, "scenario_17_without_its_local_directory_a_volume_shows_what_was_uploaded"),
    (17, "tests/crash.rs", "the_backend_alone_gives_a_prefix"),
    (18, SCENARIOS, "scenario_18_a_missing_sco_fails_reads_of_its_clusters_only"),
    (19, SCENARIOS, "scenario_19_a_corrupt_sco_fails_reads_of_the_damaged_clusters"),
    (19, DEVICES, "scenario_19_bytes_damaged_on_their_way_are_asked_for_again_or_an_error"),
    (
        20,
        SCENARIOS,
        "scenario_20_a_missing_tlog_is_not_needed_by_a_restart_and_refused_by_a_rebuild",
    ),
    (22, SCENARIOS, "scenario_22_with_the_backend_down_for_ten_minutes_writes_go_on_then_wait"),
    (22, DEVICES, "scenario_22_an_outage_of_hours_is_waited_for"),
    (22, "tests/failures.rs", "a_backend_of_its_own_may_be_killed_under_load"),
    (23, SCENARIOS, "scenario_23_with_a_slow_backend_writes_slow_down_smoothly"),
    (24, SCENARIOS, "scenario_24_with_the_backend_full_writes_wait_and_go_on_when_there_is_space"),
    (24, SCENARIOS, "scenario_24_full_of_data_the_backend_still_opens_a_volume_after_a_crash"),
    (24, DEVICES, "scenario_24_with_the_backend_full_no_read_waits"),
    (24, "tests/failures.rs", "a_full_backend_holds_writes_back_until_there_is_room"),
    (25, DEVICES, "scenario_25_while_half_of_the_calls_fail_everything_goes_on"),
    (31, RIVALS, "an_owner_that_wakes_up_with_uploads_in_flight_changes_nothing"),
    (31, RIVALS, "management_by_a_stale_owner_is_refused"),
    (40, SCENARIOS, "scenario_40_growing_keeps_old_data_and_shows_zeroes_and_the_rest_is_refused"),
    (
        41,
        "tests/hostile.rs",
        "a_shape_with_numbers_at_their_end_is_refused_or_says_that_it_is_used_up",
    ),
    (54, DEVICES, "scenario_54_a_cache_disk_that_fails_or_falls_silent_is_left_alone"),
    (54, DEVICES, "scenario_54_a_cache_disk_without_room_or_of_another_node_is_refused"),
    (54, "tests/failures.rs", "a_cache_disk_that_is_too_small_or_breaks_is_left_alone"),
    (55, DEVICES, "scenario_55_when_the_write_buffer_fails_writes_are_refused_with_the_reason"),
    (56, DEVICES, "scenario_56_a_volume_that_fills_the_buffer_does_not_starve_a_small_one"),
    (57, "tests/limits.rs", "without_descriptors_no_vdisk_is_created_and_the_others_go_on"),
    (58, "volumedriver/src/config/tests.rs", "a_reload_that_only_a_restart_could_fit_is_refused"),
    (58, "volumedriver/tests/management.rs", "configuration_is_shown_and_reloaded"),
    (59, "volumedriver/core/src/format/tests/refusal.rs", "an_unknown_version_is_named"),
];

const SCENARIOS: &str = "tests/scenarios.rs";
const DEVICES: &str = "tests/devices.rs";
const RIVALS: &str = "tests/rivals.rs";

#[cfg(test)]
mod tests {
    use super::HELD;

    #[test]
    fn every_test_that_holds_a_scenario_is_there() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (number, file, test) in HELD {
            let path = root.join(file);
            let text = std::fs::read_to_string(&path);
            let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let is_it = |line: &str| line.starts_with(&format!("fn {test}"));
            let at = text.lines().position(is_it);
            let at = at.unwrap_or_else(|| panic!("scenario {number}: {file} has no test {test}"));
            let before: Vec<&str> = text.lines().take(at).collect();
            let is_test = before.iter().rev().take(3).any(|line| line.trim() == "#[test]");
            assert!(is_test, "scenario {number}: {test} in {file} is no test");
        }
    }
}
