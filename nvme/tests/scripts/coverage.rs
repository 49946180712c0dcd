//! The table of `tests/scripts/README.md`: which scripts hold us to which row.

use std::collections::BTreeMap;

use super::script::Script;
use super::{root, scripts};

/// Scripts of each row, in one directory.
fn by_row(role: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::<_, Vec<_>>::new();
    for path in scripts(role) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let covers = Script::read(&path).covers;
        assert!(!covers.is_empty(), "{role}/{name} covers nothing");
        for row in covers {
            rows.entry(row).or_default().push(name.clone());
        }
    }
    rows
}

/// The cell of a row: the scripts that there are, or the reason why there are none.
fn cell(row: &str, role: &str, known: &mut BTreeMap<String, Vec<String>>, old: &str) -> String {
    match known.remove(row) {
        Some(names) => names.join(", "),
        None => {
            assert!(old.starts_with('–'), "{row}: no script in {role}/ and no reason why");
            old.to_owned()
        }
    }
}

#[test]
fn every_row_has_its_scripts_or_says_why_not() {
    let path = root().join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (mut targets, mut hosts) = (by_row("target"), by_row("host"));
    let (before, table) = text.split_once("|---|---|---|---|\n").expect("there is a table");
    let mut written = format!("{before}|---|---|---|---|\n");
    for line in table.lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [row, what, target, host] = cells[..] else { panic!("not four cells: {line}") };
        let target = cell(row, "target", &mut targets, target);
        let host = cell(row, "host", &mut hosts, host);
        written.push_str(&format!("| {row} | {what} | {target} | {host} |\n"));
    }
    assert!(targets.is_empty() && hosts.is_empty(), "rows not in the table: {targets:?} {hosts:?}");
    if std::env::var_os("SCRIPTS_BLESS").is_some() {
        std::fs::write(&path, &written).unwrap();
    } else {
        assert!(text == written, "the table is not up to date: run this test with SCRIPTS_BLESS=1");
    }
}
