//! `ictflow evaluate`: a small folder end to end, a start after a start, and folders that are malformed.

use crate::support::{ictflow, run};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The first line of interactions.
pub const HEAD: &str = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";

/// 600 ratings of 20 users, whose taste alternates; items come one after the other.
pub fn ratings() -> String {
    let mut text = HEAD.to_owned();
    for n in 0..600_u32 {
        let (user, item) = (n * 7 % 20, n / 15);
        let rating = 2 + 3 * u32::from((user + item * item) % 3 != 0);
        writeln!(text, "u{user}\ti{item}\t{rating}\t{}", 1_600_000_000 + 900 * n).unwrap();
    }
    text
}

/// A folder with a data set `d` of these interactions and a catalog.
pub fn folder(inter: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    fs::write(folder.path().join("d/d.inter"), inter).unwrap();
    let mut items = "item_id:token\ttitle:token_seq\tclass:token_seq\n".to_owned();
    for item in 0..40 {
        writeln!(items, "i{item}\tClip {item}\tkind{}", item % 3).unwrap();
    }
    fs::write(folder.path().join("d/d.item"), items).unwrap();
    folder
}

const QUICK: [&str; 16] = [
    "evaluate",
    "--data",
    "d",
    "--encoder",
    "hashed",
    "--title",
    "title",
    "--categories",
    "class",
    "--seeds",
    "1",
    "--epochs",
    "2",
    "--out",
    "out",
    "--arms",
];

fn quick(arms: &str) -> Vec<&str> {
    [&QUICK[..], &[arms]].concat()
}

/// Runs with a cache of its own, so that no model is needed.
fn evaluate(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = ictflow(folder, arguments).env("ICTFLOW_MODELS", folder.join("cache")).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_folder_is_evaluated_and_a_second_start_trains_nothing() {
    let folder = folder(&ratings());
    let (code, out, err) = evaluate(folder.path(), &quick("ids,strong,votes,attention"));
    assert_eq!(code, Some(0), "{err}");
    for part in
        ["480 training, 60 validation, 60 test samples", "deepfm", "attention", "AUC gained", "new items"]
    {
        assert!(out.contains(part), "{part:?} isn't in {out}");
    }
    assert!(err.contains("embedding texts: 40 made") && err.contains("epoch 2"), "{err}");
    let table = fs::read_to_string(folder.path().join("out/table.txt")).unwrap();
    assert_eq!(table, out);
    let curve = fs::read_to_string(folder.path().join("out/curves/deepfm-votes-1.csv")).unwrap();
    assert!(curve.starts_with("step,epoch,loss,valid_auc,valid_gauc,valid_log_loss\n1,"), "{curve}");

    let (code, again, err) = evaluate(folder.path(), &quick("ids,strong,votes,attention"));
    assert_eq!((code, &again), (Some(0), &out));
    assert!(err.contains("deepfm-votes-1: finished before"), "{err}");
    assert!(!err.contains("embedding") && !err.contains("epoch") && !err.contains("replaying"), "{err}");
}

#[test]
fn what_is_malformed_reaches_the_user_with_a_hint() {
    let all = ratings();
    for (what, inter, parts) in [
        ("empty", String::new(), vec!["d.inter", "empty"]),
        ("no rows", HEAD.to_owned(), vec!["a header and no rows"]),
        ("no column", all.replace("rating:float", "stars:float"), vec!["rating"]),
        ("NaN", all.replacen("\t5\t", "\tNaN\t", 1), vec!["line ", "NaN"]),
        ("one class", all.replace("\t2\t", "\t5\t"), vec!["positive", "threshold"]),
        (
            "few rows",
            all.lines().take(4).map(|line| format!("{line}\n")).collect(),
            vec!["has no samples of 3 labelled rows"],
        ),
    ] {
        let folder = folder(&inter);
        let (code, _, err) = evaluate(folder.path(), &quick("ids"));
        let last = err.lines().last().unwrap_or_default();
        assert_eq!(code, Some(1), "{what}: {err}");
        assert!(
            last.starts_with("ictflow: ") && last.ends_with(')') && !err.contains("panicked"),
            "{what}: {err}"
        );
        for part in parts {
            assert!(last.contains(part), "{what}: {part:?} isn't in {last:?}");
        }
    }
    let folder = folder(&all);
    for (arguments, part) in [
        (quick("paper"), "there is no arm \"paper\" among ids"),
        (["evaluate", "--data", "none"].to_vec(), "none"),
        ([&quick("ids")[..], &["--label", "rating>"]].concat(), "label rule"),
        ([&quick("ids")[..], &["--creator", "brand"]].concat(), "brand"),
    ] {
        let (code, _, err) = evaluate(folder.path(), &arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {err}");
        assert!(err.contains(part), "{err}");
    }
    // A backbone that isn't there is a fault of the command line.
    let ran = run(folder.path(), &[&quick("ids")[..], &["--backbone", "gbdt"]].concat());
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("choose among deepfm, xdeepfm"), "{}", ran.err);
}
