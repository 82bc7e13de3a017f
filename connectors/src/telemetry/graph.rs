//! The dataflow as a drawing: the live page fills its figures in, a report has them from the start.

use super::page::escape;
use std::fmt::Write;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A log.
    Topic,
    /// A part of the dataflow.
    Operator,
    /// Slow work outside the frontier.
    Outside,
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Kind::Topic => "topic",
            Kind::Operator => "operator",
            Kind::Outside => "outside",
        }
    }
}

/// The nodes: id, label, what is counted, kind, column, row. They stand as in the module doc of the
/// dataflow's assembly.
const NODES: [(&str, &str, &str, Kind, u32, u32); 18] = [
    ("interactions", "interactions", "records", Kind::Topic, 0, 0),
    ("candidates", "candidates", "records", Kind::Topic, 1, 0),
    ("items", "items", "records", Kind::Topic, 3, 0),
    ("history", "history", "users", Kind::Operator, 0, 1),
    ("pairs", "pairs", "live", Kind::Operator, 1, 1),
    ("catalog", "catalog", "items", Kind::Operator, 3, 1),
    ("examples", "examples", "published", Kind::Operator, 0, 2),
    ("eligible", "eligible", "CoTs wanted", Kind::Operator, 0, 3),
    ("generate", "LLM", "calls", Kind::Outside, 0, 4),
    ("cot", "cot", "answered", Kind::Topic, 0, 5),
    ("neighbours", "neighbours", "examples read", Kind::Operator, 0, 6),
    ("texts", "texts", "to embed", Kind::Operator, 3, 2),
    ("encoder", "encoder", "embedded", Kind::Outside, 3, 3),
    ("embeddings", "embeddings", "records", Kind::Topic, 3, 4),
    ("demonstrations", "demonstrations", "in the pool", Kind::Operator, 2, 5),
    ("retrieval", "retrieval", "with all K", Kind::Operator, 1, 6),
    ("ict", "ICT", "vectors live", Kind::Operator, 2, 6),
    ("features", "features", "published", Kind::Topic, 3, 6),
];

const WIDTH: u32 = 90;
const HEIGHT: u32 = 48;
const PITCH_X: u32 = 108;
const PITCH_Y: u32 = 66;

fn left(column: u32) -> u32 {
    14 + PITCH_X * column
}

fn top(row: u32) -> u32 {
    4 + PITCH_Y * row
}

fn middle(row: u32) -> u32 {
    top(row) + HEIGHT / 2
}

/// A figure of a node, and what stands under it.
pub struct Shown {
    /// The figure.
    pub value: String,
    /// A rate or another figure beside it; empty for none.
    pub beside: String,
}

impl Shown {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Shown { value: "\u{2013}".to_owned(), beside: String::new() }
    }
}

/// The ids of the nodes.
pub fn ids() -> impl Iterator<Item = &'static str> {
    NODES.iter().map(|node| node.0)
}

/// The drawing. The figure of node `x` is the text with the id `v-x`, what stands beside it `r-x`.
pub fn svg(shown: impl Fn(&str) -> Shown) -> String {
    let (width, height) = (left(3) + WIDTH + 12, top(7) - 6);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"graph\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"the dataflow\">"
    );
    out.push_str("<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" class=\"tip\"/></marker></defs>");
    for path in edges() {
        // Writing to a String cannot fail.
        let _ = write!(out, "<path class=\"edge\" marker-end=\"url(#tip)\" d=\"{path}\"/>");
    }
    for (id, label, unit, kind, column, row) in NODES {
        let (x, y, shown) = (left(column), top(row), shown(id));
        let center = x + WIDTH / 2;
        let _ = write!(
            out,
            "<g class=\"node {}\"><rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"7\"/>\
             <text class=\"label\" x=\"{center}\" y=\"{}\">{label}</text>\
             <text class=\"value\" id=\"v-{id}\" x=\"{center}\" y=\"{}\">{}</text>\
             <text class=\"unit\" x=\"{center}\" y=\"{}\"><tspan>{unit}</tspan><tspan class=\"rate\" id=\"r-{id}\">{}</tspan></text></g>",
            kind.class(),
            y + 13,
            y + 29,
            escape(&shown.value),
            y + 42,
            escape(&shown.beside)
        );
    }
    out.push_str("</svg>");
    out
}

fn edges() -> Vec<String> {
    let down = |column: u32, row: u32| {
        let x = left(column) + WIDTH / 2;
        format!("M{x} {}V{}", top(row) + HEIGHT, top(row + 1))
    };
    let right =
        |column: u32, row: u32, to: u32| format!("M{} {}H{}", left(column) + WIDTH, middle(row), left(to));
    let mut edges: Vec<String> = (0..5).map(|row| down(0, row)).collect();
    edges.extend((0..4).map(|row| down(3, row)));
    edges.push(down(1, 0));
    edges.extend([right(0, 5, 2), right(1, 6, 2), right(2, 6, 3)]);
    let beside_0 = left(0) + WIDTH;
    // Accepted events, to pairs; the newest histories, to retrieval.
    edges.push(format!("M{beside_0} {}H{}V{}H{}", middle(0), beside_0 + 6, middle(1) - 10, left(1)));
    edges.push(format!("M{beside_0} {}H{}V{}H{}", middle(1) + 10, beside_0 + 13, middle(6), left(1)));
    // Pairs, to retrieval.
    edges.push(format!("M{} {}V{}", left(1) + WIDTH / 2, top(1) + HEIGHT, top(6)));
    // States of items, to retrieval and demonstrations.
    let beside_1 = left(1) + WIDTH;
    edges.push(format!("M{} {}H{}V{}H{beside_1}", left(3), middle(1) - 8, beside_1 + 9, middle(6) - 12));
    edges.push(format!("M{} {}H{}V{}", left(3), middle(1) + 8, left(2) + WIDTH / 2, top(5)));
    // Vectors, to demonstrations and back to the catalog.
    edges.push(format!("M{} {}H{}V{}", left(3), middle(4), left(2) + WIDTH - 16, top(5)));
    let edge = left(3) + WIDTH;
    edges.push(format!("M{edge} {}H{}V{}H{edge}", middle(4), edge + 8, middle(1)));
    // Examples, to neighbours; these, to the ICT.
    edges.push(format!("M{} {}H{}V{}H{}", left(0), middle(2), left(0) - 9, middle(6), left(0)));
    let (below, center) = (top(6) + HEIGHT, |column: u32| left(column) + WIDTH / 2);
    edges.push(format!("M{} {below}V{}H{}V{below}", center(0), below + 9, center(2)));
    // Demonstrations, to retrieval.
    edges.push(format!(
        "M{} {}V{}H{}V{}",
        left(2) + WIDTH / 2,
        top(5) + HEIGHT,
        top(5) + HEIGHT + 9,
        beside_1 - 20,
        top(6)
    ));
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_a_place_for_its_figure_and_nodes_do_not_overlap() {
        let svg = svg(|id| Shown { value: format!("<{id}>"), beside: String::new() });
        for id in ids() {
            assert!(svg.contains(&format!("id=\"v-{id}\"")) && svg.contains(&format!("id=\"r-{id}\"")));
            assert!(svg.contains(&format!("&lt;{id}&gt;")), "values are escaped");
        }
        let places: std::collections::BTreeSet<_> = NODES.iter().map(|node| (node.4, node.5)).collect();
        assert_eq!(places.len(), NODES.len());
    }
}
