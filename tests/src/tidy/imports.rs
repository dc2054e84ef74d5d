//! Reads which modules a source file names: `use` lines (groups included) and paths in expressions alike.

/// A path that a file names, from its first segment on: `["crate", "units"]`, `["std", "net"]`.
pub(super) type Named = Vec<String>;

/// Every path of at least two segments that starts in the code of `text`, comments and strings left out, groups spread.
/// `self::` and leading `super::` are resolved against `module`, the file's own module path below its crate.
pub(super) fn named_paths(text: &str, module: &[String]) -> Vec<Named> {
    let code = without_comments_and_strings(text);
    let mut reader = Reader { rest: &code };
    let mut found = Vec::new();
    while let Some(first) = reader.next_path_start() {
        reader.path(vec![first], &mut found);
    }
    found.into_iter().map(|path| resolved(path, module)).filter(|path| path.len() > 1).collect()
}

fn resolved(path: Named, module: &[String]) -> Named {
    let ups = path.iter().take_while(|segment| *segment == "super").count();
    if ups == 0 || ups > module.len() {
        return path;
    }
    let stays = module.len() - ups;
    let mut whole = vec!["crate".to_owned()];
    whole.extend(module.iter().take(stays).cloned());
    whole.extend(path.into_iter().skip(ups));
    whole
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// The next identifier that is followed by `::` and not preceded by it.
    fn next_path_start(&mut self) -> Option<String> {
        loop {
            let at = self.rest.find(|c: char| c.is_alphabetic() || c == '_')?;
            let qualified = self.rest[..at].ends_with("::");
            self.rest = &self.rest[at..];
            let name = self.identifier()?;
            if self.rest.starts_with("::") && !qualified {
                return Some(name);
            }
        }
    }

    fn identifier(&mut self) -> Option<String> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// What follows a first segment: `::name`, `::{group}` or `::*`.
    fn path(&mut self, mut so_far: Named, found: &mut Vec<Named>) {
        while let Some(after) = self.rest.strip_prefix("::") {
            self.rest = after;
            if let Some(group) = after.strip_prefix('{') {
                self.rest = group;
                return self.group(&so_far, found);
            }
            let Some(name) = self.identifier() else { break };
            so_far.push(name);
        }
        found.push(so_far);
    }

    fn group(&mut self, prefix: &Named, found: &mut Vec<Named>) {
        loop {
            self.rest =
                self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',' || c == '*');
            if let Some(after) = self.rest.strip_prefix('}') {
                self.rest = after;
                return;
            }
            let Some(name) = self.identifier() else { return };
            let mut path = prefix.clone();
            path.push(name);
            self.path(path, found);
            if let Some(renamed) = self.rest.trim_start().strip_prefix("as ") {
                self.rest = renamed;
                self.identifier();
            }
        }
    }
}

/// The same text with comments, strings and characters blanked out.
pub(super) fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = skipped_len(rest);
        if skipped > 0 {
            code.push(' ');
            rest = &rest[skipped..];
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

/// Length of the comment, string or character literal that `rest` begins with; 0 for none.
fn skipped_len(rest: &str) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return rest.find("*/").map_or(rest.len(), |end| end + 2);
    }
    if let Some(hashes) = raw_string_hashes(rest) {
        let close = format!("\"{}", "#".repeat(hashes));
        let open = hashes + 2;
        return rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len());
    }
    if let Some(inner) = rest.strip_prefix('"') {
        return 1 + quoted_len(inner, '"');
    }
    // A lifetime has no closing quote right after one character.
    let mut chars = rest.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) => 1 + quoted_len(&rest[1..], '\''),
        (Some('\''), Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

fn raw_string_hashes(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.chars().take_while(|c| *c == '#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Length up to and with the closing quote, escapes skipped.
fn quoted_len(inner: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    inner.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str, module: &[&str]) -> Vec<String> {
        let module: Vec<String> = module.iter().map(|m| (*m).to_owned()).collect();
        named_paths(text, &module).iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn reads_groups_renames_and_expressions() {
        let text =
            "use crate::{a::X, b::{self, c as d}, e::*};\nfn f() { let g = crate::h::i(); j.k() }";
        assert_eq!(
            paths(text, &[]),
            ["crate::a::X", "crate::b::self", "crate::b::c", "crate::e", "crate::h::i"]
        );
    }

    #[test]
    fn resolves_super_against_the_files_module() {
        assert_eq!(paths("use super::map::Page;", &["volume"]), ["crate::map::Page"]);
        assert_eq!(paths("use super::super::wire::X;", &["volume", "plan"]), ["crate::wire::X"]);
        assert_eq!(paths("use super::plan::X;", &["volume", "read"]), ["crate::volume::plan::X"]);
    }

    #[test]
    fn comments_and_strings_name_nothing() {
        let text = "// crate::a::b\n/* crate::c::d */ \"crate::e \\\" ::f\" r#\"crate::g::h\"# 'x' '\\'' \n/// [`crate::i::j`]\nfn f<'a>() {}";
        assert_eq!(paths(text, &[]), Vec::<String>::new());
    }
}
