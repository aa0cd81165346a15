//! Which rows have which template, and which columns are of one template alone.

use crate::segment::kept::Measured;
use crate::segment::lines::Template;

/// The rows of a block's lines by template.
#[derive(Debug)]
pub(crate) struct TemplateRows {
    /// By template, where its rows end in `rows`.
    ends: Vec<u32>,
    /// In ascending order for each template.
    rows: Vec<u32>,
    /// By column, the number of the only template with rows that has it, if it has it once: the
    /// template's n-th row has the column's n-th value.
    owners: Vec<Option<u32>>,
}

impl Measured for TemplateRows {
    fn bytes(&self) -> usize {
        self.ends.bytes() + self.rows.bytes() + self.owners.bytes()
    }
}

impl TemplateRows {
    /// Sorts rows, each given by the number of its template, of which there are `counts`.
    pub(crate) fn new(templates: &[Template], counts: &[u32], ids: &[u32], columns: usize) -> Self {
        let mut next: Vec<u32> = Vec::with_capacity(counts.len());
        let mut ends = Vec::with_capacity(counts.len());
        let mut end = 0;
        for count in counts {
            next.push(end);
            end += count;
            ends.push(end);
        }
        let mut rows = vec![0; ids.len()];
        for (row, id) in (0_u32..).zip(ids) {
            let slot = next.get_mut(*id as usize);
            let Some(slot) = slot else { continue };
            if let Some(r) = rows.get_mut(*slot as usize) {
                *r = row;
            }
            *slot += 1;
        }
        let mut uses = vec![0_u32; columns];
        let mut owners = vec![None; columns];
        for (number, (t, _)) in
            (0..).zip(templates.iter().zip(counts)).filter(|(_, (_, n))| **n > 0)
        {
            for column in &t.columns {
                let (Some(n), Some(owner)) = (uses.get_mut(*column), owners.get_mut(*column))
                else {
                    continue;
                };
                *n += 1;
                *owner = (*n == 1).then_some(number);
            }
        }
        Self { ends, rows, owners }
    }

    /// Returns the rows of a template, ascending.
    pub(crate) fn of(&self, template: usize) -> Option<&[u32]> {
        let end = *self.ends.get(template)?;
        let start = template.checked_sub(1).map_or(Some(0), |t| self.ends.get(t).copied())?;
        self.rows.get(start as usize..end as usize)
    }

    /// Returns whether the n-th row of a template has the n-th value of a column.
    pub(crate) fn is_own(&self, template: usize, column: usize) -> bool {
        self.owners.get(column).is_some_and(|o| o.is_some_and(|o| o as usize == template))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_listed_by_template_and_columns_of_one_are_told() {
        let template = |columns: &[usize]| {
            let mut t = Template::default();
            t.columns = columns.to_vec();
            t
        };
        // Of columns: 0 is of the first alone, 1 of two, 2 twice in one, 3 of one that has no rows too.
        let templates = [template(&[0, 1]), template(&[3]), template(&[1, 2, 2]), template(&[3])];
        let ids = [2, 0, 0, 3, 2, 0];
        let rows = TemplateRows::new(&templates, &[3, 0, 2, 1], &ids, 4);
        let listed: Vec<_> = (0..5).map(|t| rows.of(t)).collect();
        let want: [&[u32]; 4] = [&[1, 2, 5], &[], &[0, 4], &[3]];
        assert_eq!(listed, [Some(want[0]), Some(want[1]), Some(want[2]), Some(want[3]), None]);
        let own = |t| (0..4).filter(|c| rows.is_own(t, *c)).collect::<Vec<_>>();
        assert_eq!([own(0), own(1), own(2), own(3)], [vec![0], vec![], vec![], vec![3]]);
    }
}
