//! The reader of text maps: tunables, devices, types and buckets (`rules` reads the rest).
//!
//! Ceph's grammar, and a little more: blocks may stand in any order, a bucket may be used before
//! its own block, the lines of a bucket may be in any order, a rule needs no sizes. Only the form
//! is checked here; `resolve` turns names into ids, and `CrushMap::new` checks the sense.

use super::lexer::{Lexer, ParseError, Place, Problem, Token};
use super::resolve::resolve;
use super::rules::{RawRule, choose_args, rule};
use crate::crush::error::Subject;
use crate::crush::model::ALG_NAMES;
use crate::crush::{
    BUCKETS_MAX, BucketAlg, BuildError, ChooseArgs, CrushMap, DEVICE_ID_MAX, Device, ITEMS_MAX, RULES_MAX,
    TYPES_MAX, Tunables, TypeName,
};

/// The number of the only hash that there is.
const HASH_RJENKINS1: u32 = 0;

/// An `item` line.
pub(super) struct RawItem<'t> {
    pub name: Token<'t>,
    pub weight: Option<u32>,
    pub pos: Option<usize>,
}

/// A bucket's block.
pub(super) struct RawBucket<'t> {
    pub type_name: Token<'t>,
    pub name: Token<'t>,
    pub id: Option<i32>,
    pub class_ids: Vec<(String, i32)>,
    pub alg: BucketAlg,
    pub items: Vec<RawItem<'t>>,
}

/// Everything that a text says, names not yet resolved.
pub(super) struct RawMap<'t> {
    pub tunables: Tunables,
    pub devices: Vec<Device>,
    pub types: Vec<TypeName>,
    pub buckets: Vec<RawBucket<'t>>,
    pub rules: Vec<RawRule<'t>>,
    pub choose_args: Vec<ChooseArgs>,
    /// Where the parts are that later checks may find fault with.
    pub places: Vec<(Subject, Place)>,
    items: usize,
}

impl CrushMap {
    /// Reads a map in Ceph's text format.
    ///
    /// A text that sets no tunables means [`Tunables::LEGACY`], as for Ceph's compiler.
    ///
    /// # Errors
    ///
    /// The first fault, with its line and column and what to do about it.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let raw = RawMap::read(&mut Lexer::new(text)?)?;
        let (def, places) = resolve(raw)?;
        Self::new(def).map_err(|error| {
            let subject = error.subject();
            let place = places.iter().rev().find(|entry| entry.0 == subject);
            place.map_or(Place::START, |entry| entry.1).error(Problem::Build(error))
        })
    }
}

impl<'t> RawMap<'t> {
    fn read(lexer: &mut Lexer<'t>) -> Result<Self, ParseError> {
        let mut raw = Self {
            tunables: Tunables::LEGACY,
            devices: Vec::new(),
            types: Vec::new(),
            buckets: Vec::new(),
            rules: Vec::new(),
            choose_args: Vec::new(),
            places: Vec::new(),
            items: 0,
        };
        while !lexer.peek().text.is_empty() {
            let head =
                lexer.word("`tunable`, `device`, `type`, `rule`, `choose_args` or the type of a bucket")?;
            match head.text {
                "tunable" => raw.tunable(lexer)?,
                "device" => raw.device(lexer)?,
                "type" => raw.type_name(lexer)?,
                "rule" => {
                    let rule = rule(lexer)?;
                    raw.places.push((Subject::Rule(rule.id), rule.place));
                    raw.rules.push(rule);
                    limit(head, "number of rules", raw.rules.len(), RULES_MAX as usize)?;
                }
                "choose_args" => {
                    let set = choose_args(lexer)?;
                    raw.places.push((Subject::ChooseArgs(set.id), head.place));
                    raw.choose_args.push(set);
                }
                _ => raw.bucket(head, lexer)?,
            }
        }
        Ok(raw)
    }

    fn tunable(&mut self, lexer: &mut Lexer<'t>) -> Result<(), ParseError> {
        let name = lexer.word("the name of a tunable")?;
        let value: u32 = lexer.word("a number")?.number("a number from 0 up")?;
        let mut tunables = self.tunables.named();
        let Some((_, tunable)) = tunables.iter_mut().find(|(known, _)| *known == name.text) else {
            return Err(name.unknown("tunable", "correct it or take the line out"));
        };
        **tunable = value;
        self.places.push((Subject::Map, name.place));
        Ok(())
    }

    fn device(&mut self, lexer: &mut Lexer<'t>) -> Result<(), ParseError> {
        let number = lexer.word("the id of a device")?;
        let id: i32 = number.number("a device id from 0 up")?;
        let name = lexer.word("the name of the device")?;
        let class = if lexer.accept("class") {
            Some(lexer.word("the name of a device class")?.text.to_owned())
        } else {
            None
        };
        self.devices.push(Device { id, name: name.text.to_owned(), class });
        self.places.push((Subject::Device(id), number.place));
        limit(number, "number of devices", self.devices.len(), DEVICE_ID_MAX as usize + 1)
    }

    fn type_name(&mut self, lexer: &mut Lexer<'t>) -> Result<(), ParseError> {
        let number = lexer.word("the id of a type")?;
        let id: i32 = number.number("a type id from 0 up")?;
        let name = lexer.word("the name of the type")?;
        self.types.push(TypeName { id, name: name.text.to_owned() });
        self.places.push((Subject::Type(id), number.place));
        limit(number, "number of types", self.types.len(), TYPES_MAX)
    }

    fn bucket(&mut self, type_name: Token<'t>, lexer: &mut Lexer<'t>) -> Result<(), ParseError> {
        let name = lexer.word("the name of a bucket")?;
        lexer.expect("{", "`{` after the name of a bucket")?;
        let mut id = None;
        let mut class_ids = Vec::new();
        let mut alg = None;
        let mut items = Vec::new();
        while !lexer.accept("}") {
            let key = lexer.word("`id`, `alg`, `hash`, `item` or `}`")?;
            match key.text {
                "id" => {
                    let number = lexer.word("the id of the bucket")?;
                    let expected = "a bucket id from -1 down";
                    let value: i32 = number.number(expected)?;
                    if value >= 0 {
                        return Err(number.unexpected(expected));
                    }
                    if lexer.accept("class") {
                        let class = lexer.word("the name of a device class")?;
                        if class_ids.iter().any(|(known, _)| known == class.text) {
                            return Err(class.twice("the id for device class"));
                        }
                        class_ids.push((class.text.to_owned(), value));
                        limit(class, "number of classes", class_ids.len(), BUCKETS_MAX)?;
                    } else if id.replace(value).is_some() {
                        return Err(number.twice("the bucket's id"));
                    }
                }
                "alg" => {
                    let word = lexer.word("the bucket's algorithm")?;
                    let Some(&(_, known)) = ALG_NAMES.iter().find(|(alg, _)| *alg == word.text) else {
                        let hint = "use straw2, straw, tree, list or uniform";
                        return Err(word.unknown("bucket algorithm", hint));
                    };
                    alg = Some(known);
                }
                "hash" => {
                    let word = lexer.word("the bucket's hash")?;
                    let known =
                        word.text == "rjenkins1" || word.number::<u32>("a hash") == Ok(HASH_RJENKINS1);
                    if !known {
                        return Err(word.unknown("hash", "use 0, which is rjenkins1"));
                    }
                }
                "item" => {
                    items.push(item(lexer)?);
                    self.items += 1;
                    limit(key, "number of items of all buckets", self.items, ITEMS_MAX)?;
                }
                _ => return Err(key.unexpected("`id`, `alg`, `hash`, `item` or `}`")),
            }
        }
        let Some(alg) = alg else {
            let what = "`alg`";
            let missing = Problem::Missing { block: "bucket", name: name.shortened(), what };
            return Err(name.place.error(missing));
        };
        self.buckets.push(RawBucket { type_name, name, id, class_ids, alg, items });
        limit(name, "number of buckets", self.buckets.len(), BUCKETS_MAX)
    }
}

fn item<'t>(lexer: &mut Lexer<'t>) -> Result<RawItem<'t>, ParseError> {
    let name = lexer.word("the name of a device or bucket")?;
    let mut item = RawItem { name, weight: None, pos: None };
    loop {
        if lexer.accept("weight") {
            item.weight = Some(lexer.word("a weight")?.weight()?);
        } else if lexer.accept("pos") {
            item.pos = Some(lexer.word("a position")?.number("a position from 0 up")?);
        } else {
            return Ok(item);
        }
    }
}

/// Refuses early what `CrushMap::new` would refuse in the end, so that memory stays bounded.
pub(super) fn limit(
    token: Token<'_>,
    what: &'static str,
    count: usize,
    max: usize,
) -> Result<(), ParseError> {
    if count <= max {
        return Ok(());
    }
    let (value, max) = (count as i64, max as i64);
    let error = BuildError::OutOfRange { subject: Subject::Map, what, value, min: 0, max };
    Err(token.place.error(Problem::Build(error)))
}
