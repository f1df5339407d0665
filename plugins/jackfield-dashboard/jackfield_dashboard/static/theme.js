// Before anything is drawn, so that nothing flashes: the theme that was chosen last time.
try {
  const theme = localStorage.getItem("jackfield.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Where nothing may be stored, the system's theme holds.
}
