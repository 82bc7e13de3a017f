//! The status page: one self-contained file, made once from its parts, with the policy that lets a
//! browser run just its own script and style.

use super::graph;
use sha2::{Digest, Sha256};

/// The look of the page, and of reports that are written as files.
pub const STYLE: &str = include_str!("style.css");

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

/// The page `/`.
pub struct Page {
    html: String,
    policy: String,
}

impl Page {
    /// Puts the parts together.
    #[expect(clippy::new_without_default, reason = "there is nothing to choose")]
    pub fn new() -> Self {
        let html = PAGE
            .replace("{{style}}", STYLE)
            .replace("{{script}}", SCRIPT)
            .replace("{{graph}}", &graph::svg(|_| graph::Shown::unknown()));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            base64(&Sha256::digest(STYLE)),
            base64(&Sha256::digest(SCRIPT))
        );
        Page { html, policy }
    }

    /// The file.
    pub fn html(&self) -> &str {
        &self.html
    }

    /// Its Content-Security-Policy.
    pub fn policy(&self) -> &str {
        &self.policy
    }
}

/// A text as the content of an element or of a quoted attribute. Titles and CoTs are untrusted:
/// control characters go too, and so do the marks that turn the direction of what follows.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Standard base64 with padding, for the digests of the policy.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for at in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_examples_of_its_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = Page::new();
        for mark in
            ["{{", "http:", "https:", "src=", "href=", "@import", "url(", " style=", " onclick", "innerHTML"]
        {
            // The name space of SVG is an address that nobody asks; the tip stands in the file.
            let html = page.html().replace("http://www.w3.org/2000/svg", "").replace("url(#tip)", "");
            assert!(!html.contains(mark), "{mark}");
        }
        assert!(page.policy().contains("default-src 'none'") && !page.policy().contains("unsafe"));
        assert!(
            page.html().contains(&format!("<style>{STYLE}</style>")),
            "its digest is of just these bytes"
        );
        assert!(page.html().contains(&format!("<script>{SCRIPT}</script>")));
    }

    #[test]
    fn nothing_that_a_text_holds_can_end_its_element() {
        let hostile = "</p><script>alert('x')</script> & \"\u{202e}\u{0}\n";
        assert_eq!(
            escape(hostile),
            "&lt;/p&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;  "
        );
    }
}
