@echo off
rem Starts the workshop: an environment of its own from the wheels beside this file, no network.
rem Yours to change are the copies in %USERPROFILE%\specmoe-workshop (or in %SPECMOE_WORKSHOP%).
rem start.bat --check: only sets up and says PASS or FAIL.
setlocal
set "KIT=%~dp0"
if not defined SPECMOE_WORKSHOP set "SPECMOE_WORKSHOP=%USERPROFILE%\specmoe-workshop"
set "VENV=%SPECMOE_WORKSHOP%\.venv"

if exist "%SPECMOE_WORKSHOP%\.ready" goto material
set "FOUND="
for %%v in (@PYTHONS@) do (
  if not defined FOUND py -%%v -c "import sys; v = sys.version_info; sys.exit(v[2] < @FIRST@.get(v[1], 0))" >nul 2>nul && set "FOUND=%%v"
)
if not defined FOUND (
  echo This kit is for Python @SAID@, and the launcher py finds none: install one from python.org.
  pause
  exit /b 1
)
echo Setting up %SPECMOE_WORKSHOP% with Python %FOUND% (a few minutes, once)
if not exist "%SPECMOE_WORKSHOP%" mkdir "%SPECMOE_WORKSHOP%"
py -%FOUND% -m venv "%VENV%" || goto failed
"%VENV%\Scripts\python.exe" -m pip install --quiet --disable-pip-version-check --no-index --find-links "%KIT%wheels" "specmoe[notebooks]" || goto failed
type nul > "%SPECMOE_WORKSHOP%\.ready"

:material
rem What is there already is somebody's work: only what is missing is copied.
for %%f in (notebooks tutorials) do (
  robocopy "%KIT%%%f" "%SPECMOE_WORKSHOP%\%%f" /e /xc /xn /xo >nul
)
set "SPECMOE_NOTEBOOKS=%SPECMOE_WORKSHOP%\notebooks"
cd /d "%SPECMOE_WORKSHOP%"
if "%~1"=="--check" (
  "%VENV%\Scripts\python.exe" -m specmoe doctor --workshop
  exit /b
)
"%VENV%\Scripts\python.exe" -m jupyterlab --ServerApp.root_dir="%SPECMOE_WORKSHOP%" --LabApp.default_url=/lab/tree/notebooks
exit /b

:failed
echo The set-up failed: delete %SPECMOE_WORKSHOP% and try again, or ask your instructor.
pause
exit /b 1
