package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
)

// File is a Go file as the source rules see it. Name is only used in complaints and to know tests and main
// packages from the rest.
type File struct {
	Name string
	Text string

	fset *token.FileSet
	ast  *ast.File
}

// Parse reads one Go file.
func Parse(name, text string) (*File, error) {
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &File{Name: name, Text: text, fset: fset, ast: parsed}, nil
}

// IsTest reports whether the file is compiled into tests only.
func (f *File) IsTest() bool { return strings.HasSuffix(f.Name, "_test.go") }

// Lines returns the number of lines of the file.
func (f *File) Lines() int { return strings.Count(f.Text, "\n") }

// Function is one function of a file and its length.
type Function struct {
	Name  string
	Where string // file:line
	Lines int    // from the func keyword to the closing brace, both included
}

// Functions returns every declared function with a body. A function literal counts with the function around it.
func (f *File) Functions() []Function {
	var all []Function
	for _, d := range f.ast.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		from, to := f.fset.Position(fn.Pos()), f.fset.Position(fn.End())
		all = append(all, Function{Name: fn.Name.Name, Where: fmt.Sprintf("%s:%d", f.Name, from.Line), Lines: to.Line - from.Line + 1})
	}
	return all
}

// Undocumented returns the exported names of the file (functions, methods of exported types, types, constants,
// variables) that have no doc comment. A comment above a group of constants or variables documents the group.
func (f *File) Undocumented() []string {
	if f.IsTest() || f.ast.Name.Name == "main" {
		return nil
	}
	var bad []string
	complain := func(n *ast.Ident) {
		bad = append(bad, fmt.Sprintf("%s:%d: %s has no doc comment", f.Name, f.fset.Position(n.Pos()).Line, n.Name))
	}
	for _, d := range f.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) {
				complain(d.Name)
			}
		case *ast.GenDecl:
			for _, n := range undocumentedSpecs(d) {
				complain(n)
			}
		}
	}
	return bad
}

// undocumentedSpecs returns the exported names that a type, const or var declaration leaves without a comment.
func undocumentedSpecs(d *ast.GenDecl) []*ast.Ident {
	var bad []*ast.Ident
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
				bad = append(bad, s.Name)
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
					bad = append(bad, n)
				}
			}
		}
	}
	return bad
}

// exportedReceiver reports whether a function is no method, or a method of an exported type: only these are seen
// from outside of the package.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// HasPackageComment reports whether this file carries its package's comment.
func (f *File) HasPackageComment() bool { return f.ast.Doc != nil }

// The words are put together here so that this file does not complain about itself.
var (
	openWork  = regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"}, "|") + `)\b`)
	errorText = regexp.MustCompile(`(fmt\.Errorf|errors\.New|wrapf?)\("([fF]ailed|[uU]nable|[cC]ould not|[eE]rror|[cC]annot)\b`)
	vagueName = map[string]bool{"util": true, "utils": true, "common": true, "helper": true, "helpers": true, "types": true, "pkg": true, "lib": true, "api": true}
)

// CheckWords complains about work left open in a text, and about errors that begin with what every error says.
func CheckWords(name, text string) []string {
	var bad []string
	for i, line := range strings.Split(text, "\n") {
		if w := openWork.FindString(line); w != "" {
			bad = append(bad, fmt.Sprintf("%s:%d: %s", name, i+1, w))
		}
		if strings.HasSuffix(name, ".go") && errorText.MatchString(line) {
			bad = append(bad, fmt.Sprintf("%s:%d: an error says the verb and the noun, then the cause: %s", name, i+1, strings.TrimSpace(line)))
		}
	}
	return bad
}
