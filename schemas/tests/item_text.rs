//! Properties of item texts, over arbitrary unicode.
#![allow(clippy::unwrap_used)]

use ictflow_schemas::item::{Item, ItemText, normalise};
use ictflow_schemas::limits::CATEGORIES;
use proptest::prelude::*;

/// Arbitrary text, and what normalising meets at its edges: blanks and controls of all sorts between
/// letters and marks that compose, decompose or change places.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("\u{0}"),
        Just("\t\r\n\u{b}\u{c}"),
        Just("\u{1c}\u{1f}\u{7f}\u{85}\u{9f}"),
        Just("\u{a0}\u{1680}\u{2000}\u{2001}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}"),
        Just("\u{200b}\u{200d}\u{feff}\u{ad}"),
        Just("e\u{301}"),
        Just("\u{301}\u{323}"),
        Just("\u{212b}\u{2126}\u{fb00}"),
        Just("\u{1100}\u{1161}\u{11a8}"),
        Just("title: "),
        Just(", "),
        Just("a"),
    ];
    let known = prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat());
    prop_oneof![known, any::<String>()]
}

fn item() -> impl Strategy<Value = Item> {
    let optional = || prop::option::of(text());
    let list = || prop::collection::vec(text(), 0..4);
    (optional(), optional(), list(), list(), optional(), optional()).prop_map(
        |(title, creator, categories, tags, description, language)| Item {
            title,
            creator,
            categories,
            tags,
            description,
            language,
            ..Item::default()
        },
    )
}

/// A record may be 16 MiB of names; a ranker lays out as many as the item with the most has.
#[test]
fn the_first_categories_count_as_ids_and_the_text_has_all() {
    let name = |n: usize| format!("c{n}");
    let item = Item {
        categories: (0..10_000).flat_map(|n| [name(n), format!(" {} ", name(n)), String::new()]).collect(),
        ..Item::default()
    };
    assert_eq!(item.category_ids(), (0..CATEGORIES).map(name).collect::<Vec<_>>());
    assert!(item.text().contains("c9999"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn normalising_twice_changes_nothing(text in text()) {
        let once = normalise(&text);
        prop_assert_eq!(normalise(&once), once.clone());
        prop_assert!(!once.contains(|c: char| c.is_control() || (c.is_whitespace() && c != ' ')), "{:?}", once);
        prop_assert!(!once.contains("  ") && once.trim() == once);
    }

    #[test]
    fn a_text_read_back_gives_itself(item in item()) {
        let text = item.text();
        let read = ItemText::parse(&text);
        let again = Item {
            title: Some(read.title),
            creator: Some(read.creator),
            categories: vec![read.categories],
            tags: vec![read.tags],
            description: Some(read.description),
            language: Some(read.language),
            ..Item::default()
        };
        prop_assert_eq!(again.text(), text.clone());
        // A value never makes a line of its own.
        prop_assert!(text.lines().count() <= 6);
    }
}
