//! The series that an expression of PromQL names. It is no parser: Prometheus decides whether an
//! expression is valid.

/// `name{label="value"}`: a name, and the conditions on its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) name: String,
    /// Label, operator, value.
    pub(crate) matchers: Vec<(String, String, String)>,
}

/// Words that name no series, besides functions.
const KEYWORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
/// What is followed by a list of labels.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Every selector, in the order in which they stand there.
pub(crate) fn selectors(expression: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = rest[1..].find('"').expect("a text that ends") + 2;
            rest = &rest[end..];
        } else if first == '[' {
            rest = rest.split_once(']').expect("a window that ends").1;
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if is_of_name(first) {
            let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
            let name = &rest[..end];
            rest = rest[end..].trim_start();
            if GROUPING.contains(&name) {
                rest = rest.split_once(')').expect("a list of labels").1;
            } else if !is_function(rest) && !KEYWORDS.contains(&name) {
                let mut matchers = Vec::new();
                if let Some(inner) = rest.strip_prefix('{') {
                    (matchers, rest) = matchers_of(inner);
                }
                let name = name.to_owned();
                found.push(Selector { name, matchers });
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Whether what stands behind a name makes it a function: its arguments, or how it aggregates.
fn is_function(behind: &str) -> bool {
    let word = behind.split(|c| !is_of_name(c)).next();
    behind.starts_with('(') || matches!(word, Some("by" | "without"))
}

/// The matchers up to the closing brace, and what comes behind it.
fn matchers_of(text: &str) -> (Vec<(String, String, String)>, &str) {
    let mut matchers = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.starts_with('}') {
        let (head, behind) = rest.split_once('"').expect("a value");
        let (value, behind) = behind.split_once('"').expect("the end of a value");
        let label = head.trim_end_matches(['=', '!', '~']);
        let operator = &head[label.len()..];
        matchers.push((label.trim().to_owned(), operator.to_owned(), value.to_owned()));
        rest = behind.trim_start_matches([' ', ',']);
    }
    (matchers, &rest[1..])
}

#[test]
fn selectors_are_told_from_functions_labels_and_numbers() {
    let found = selectors(
        "sum by (job, le) (rate(a_total{x=\"1\", y!~\"b|c\"}[5m])) / on (x) group_left () 0.5 * b:c:d5m > 1e3 \
         and absent(up{job=\"pickd\"}) or time() - d",
    );
    let named: Vec<&str> = found.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!(named, ["a_total", "b:c:d5m", "up", "d"]);
    let matcher = |label: &str, operator: &str, value: &str| (label.to_owned(), operator.to_owned(), value.to_owned());
    assert_eq!(found[0].matchers, [matcher("x", "=", "1"), matcher("y", "!~", "b|c")]);
}
